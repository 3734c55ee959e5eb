"""What the library imports: torch, safetensors and the standard library to load and use a model, and nothing else."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from vqgan.model import VQGAN

SMALLEST: dict[str, Any] = {
    "image_size": 8,
    "ch": 32,
    "ch_mult": [1, 1],
    "num_res_blocks": 1,
    "attn_resolutions": [],
    "z_channels": 4,
    "quantizer": {"name": "vq", "args": {"codebook_size": 8, "codebook_dim": 4}},
}
ROOT = Path(__file__).parent.parent

BLOCKER = """
import sys
from importlib.abc import MetaPathFinder

class Blocker(MetaPathFinder):
    names = {NAMES}
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in self.names:
            raise ModuleNotFoundError(f"{name} is blocked", name=name)

import torch  # what torch itself takes where it is there is its own affair
sys.meta_path.insert(0, Blocker())
theirs = set(sys.modules)
"""
BLOCKED = {
    *("lpips", "kornia", "accelerate", "tensorboard", "torchvision", "omegaconf", "yaml", "PIL"),
    *("huggingface_hub", "webdataset", "wids", "braceexpand", "tqdm", "torch_fidelity", "losses", "scipy", "psutil"),
}


@pytest.fixture
def export(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    VQGAN(**SMALLEST).save_pretrained(tmp_path / "export")
    return tmp_path / "export"


def python(script: str, *arguments: str) -> str:
    """Output of a script in a process of its own, for which the blocked packages do not exist."""
    head = BLOCKER.replace("{NAMES}", repr(BLOCKED))
    command = [sys.executable, "-c", head + script, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_loading_using_and_saving_need_torch_and_safetensors_only(export: Path, tmp_path: Path) -> None:
    script = """
from vqgan import VQGAN
model = VQGAN.from_pretrained(sys.argv[1])
ours = {name.split(".")[0] for name in sys.modules.keys() - theirs} - {name.split(".")[0] for name in theirs}
print(*sorted(ours - sys.stdlib_module_names))
print("torch._dynamo" in sys.modules)
recon = model.reconstruct(torch.zeros(1, 3, 5, 7))
print(tuple(recon.shape))
model.save_pretrained(sys.argv[2])
print(VQGAN.from_pretrained(sys.argv[2]).weights_hash() == model.weights_hash())
print(sorted(Blocker.names & {name.split(".")[0] for name in sys.modules.keys() - theirs}))
"""
    new, compiler, shape, equal, blocked = python(script, str(export), str(tmp_path / "again")).splitlines()
    assert set(new.split()) <= {"vqgan", "safetensors", "numpy"}
    assert compiler == "False"  # two seconds
    assert shape == "(1, 3, 5, 7)"
    assert equal == "True"
    assert blocked == "[]"


def test_the_blocker_blocks() -> None:
    script = "try: import kornia\nexcept ModuleNotFoundError as error: print(error)"
    assert python(script) == "kornia is blocked\n"


def test_a_hub_id_without_the_library_is_one_line() -> None:
    script = """
from vqgan import VQGAN
from vqgan.errors import UserError
try: VQGAN.from_pretrained("user/name")
except UserError as error: print(error)
"""
    assert "pip install huggingface_hub" in python(script)


def test_vqgan_alone_imports_no_torch() -> None:
    code = "import sys, vqgan; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout == "False\n"
