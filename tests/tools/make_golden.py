"""Write tests/golden/ anew and print the hashes for tests/coding/test_portability.py: right only after a deliberate
change of the format or the weights. `fast`, a file of version 1, from when that model had no context, and `photo-0.1`,
whose model only decodes, stay.

    python tests/tools/make_golden.py
"""

from shared import ALL_RATES, GOLDEN, GOLDEN_MODELS, HYPER, digest, tiny_network

from codec.coding.models import export, load_model
from codec.container import bitstream
from codec.files import sample_images


def main() -> None:
    face = dict(sample_images())["astronaut"].crop((160, 60, 288, 156))
    GOLDEN.mkdir(exist_ok=True)
    network = tiny_network(face, ALL_RATES, HYPER, N=8, M=8, blocks=[1, 0], hyper_N=8, hyper_M=5)
    network.prior.scale *= 0.1  # narrow tables: a small file, and some symbols are escaped
    export(network, GOLDEN_MODELS["hyper"])
    for name, quality in (("hyper", 60), ("fast-factorized", 50), ("photo", 50), ("fast-context", 75)):
        model = load_model(GOLDEN_MODELS[name], precision="fp32")
        data = model.compress(face, quality)
        (GOLDEN / f"{name}.lic").write_bytes(data)
        model.decompress(data).save(GOLDEN / f"{name}.png", optimize=True)
        print(f'    "{name}": "{digest(model.decode(*bitstream.read(data)))}",')


if __name__ == "__main__":
    main()
