"""torch.compile as a flag."""

import shutil

import pytest
import torch

from tap_ray.errors import ConfigError
from tap_ray.training.compiling import compile_layers, require_compiler
from tests.training.sharded import Network

CPU = torch.device("cpu")


@pytest.mark.long_proof
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method`:DeprecationWarning")  # torch's own compiler
@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # likewise
def test_compiled_layers_compute_the_same():
    plain, compiled = Network(), Network()
    compile_layers(compiled, CPU)
    assert compiled.state_dict().keys() == plain.state_dict().keys()
    rgb = torch.randint(0, 255, (3, 4, 4, 3), dtype=torch.uint8)
    for network in (plain, compiled):
        network(rgb).square().mean().backward()
    for name, value in plain.named_parameters():
        if value.grad is not None:
            torch.testing.assert_close(compiled.get_parameter(name).grad, value.grad)


def test_a_machine_without_a_compiler_is_told(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(ConfigError, match=r"--compile needs a C\+\+ compiler on each machine.*apt-get install g\+\+"):
        require_compiler(CPU)
