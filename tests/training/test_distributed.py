"""Training in several processes: the same batches, the same weights, as in one."""

import os
import socket
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from shared import TRAIN, in_process, log

import train
from codec.config import Config, DataConfig, ModelConfig, TrainConfig
from codec.training.checkpoints import load_checkpoint
from codec.training.distributed import World, join
from codec.training.run import Run

CPU = torch.device("cpu")
STEPS = 20


def config(accumulate: int = 1) -> Config:
    model = ModelConfig(N=8, M=16, blocks=[1, 0], hyper_N=8, hyper_M=4)
    return Config(model, DataConfig(patch=32), TrainConfig(batch=4, warmup=0, precision="fp32", accumulate=accumulate))


def trained(world: World, accumulate: int = 1) -> dict:
    """The weights after 20 steps on batches of random pixels, of which this process sees its share."""
    run = Run(config(accumulate), CPU, world)
    pixels = torch.rand(STEPS, 4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    run.begin(pixels[0])
    run.model.train()
    for x in pixels:
        run.update(x[world.share(4)])
    return {"model": run.model.state_dict(), "average": run.average.state_dict()}


def one_of_two(rank: int, port: int, folder: str) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    world, _ = join("cpu")
    torch.save(trained(world), f"{folder}/{rank}.pt")
    assert world.agreed(rank == 1, CPU) and not world.agreed(False, CPU)
    world.leave()
    threads = [path.read_text() for path in Path("/proc/self/task").glob("*/comm")]
    assert not [name for name in threads if "gloo" in name]  # one that ran on could end the process with SIGABRT


def differences(a: dict, b: dict) -> float:
    """The largest difference of two states, relative to the largest weight of its tensor or to 1/100."""
    tensors = [(a[part][name], b[part][name]) for part in a for name in a[part]]
    return max(
        ((s - t).abs().max() / t.abs().max().clamp_min(0.01)).item() for s, t in tensors if t.is_floating_point()
    )


def test_two_processes_have_equal_weights_and_those_of_one_with_the_same_batches(tmp_path):
    port = free_port()
    mp.start_processes(one_of_two, args=(port, str(tmp_path)), nprocs=2, start_method="forkserver")
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert differences(first, second) == 0
    alone = trained(World())
    assert 0 < differences(first, alone) < 1e-3
    assert differences(trained(World(), accumulate=2), alone) < 1e-3


def test_a_batch_is_shared_without_rest():
    shares = [World(rank, 4).share(12) for rank in range(4)]
    assert [n for share in shares for n in range(12)[share]] == list(range(12))


def test_a_process_started_by_hand_is_a_world_of_its_own(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    world, device = join("cpu")
    assert world == World(0, 1) and world.first and device == CPU
    x = torch.ones(2)
    assert world.total(x) is x and world.agreed(True, CPU) and not world.agreed(False, CPU)


@pytest.fixture
def folders(tmp_path, photos) -> Path:
    for name in ("data", "val"):
        (tmp_path / name).mkdir()
    for i, photo in enumerate(photos):
        photo.crop((0, 0, 64, 64)).save(tmp_path / f"{'val' if i < 2 else 'data'}/{i}.png")
    return tmp_path


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def test_processes_of_torchrun_train_as_one_does(folders, monkeypatch):
    options = "--data data --val val --patch 32 --batch 4 --steps 4 --warmup 0 --val_every 2 --log_every 2 --N 8 --M 16"
    options += " --blocks 1 0 --hyper_N 8 --hyper_M 4 --precision fp32 --val_qualities 50 --device cpu"
    monkeypatch.chdir(folders)
    world = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    ranks = [world | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(2)]  # what torchrun says to them
    processes = [in_process(TRAIN, *options.split(), "--out", "two", environment=rank) for rank in ranks]
    assert train.main([*options.split(), "--out", "one"]) == 0
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    one, two = (load_checkpoint(folders / name / "last.pt") for name in ("one", "two"))
    assert differences(*({"model": state["model"]} for state in (one, two))) < 0.01
    assert one["step"] == two["step"] == 4 and two["best"] == pytest.approx(one["best"], rel=0.01)
    assert [row["step"] for row in log("one", "val")] == [row["step"] for row in log("two", "val")]
    assert (folders / "two/model.safetensors").exists()
