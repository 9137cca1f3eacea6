"""Training steps on a GPU without a GPU: what lies on it is faked by torch, with a device and no numbers. An operation
between two devices is an error, as it is on a GPU, and so is a Python value that would have to be read from it.

A process of its own, because torch then takes the faked device for this machine's accelerator.
"""

import sys
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.nn import Parameter
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

from tap_ray.align.objective import BehaviorCloning, CloningWeights
from tap_ray.models.batch import Batch
from tap_ray.models.build import Network
from tap_ray.models.language import encode, word_tokenizer
from tap_ray.models.reach import NUM_REACH
from tap_ray.pretrain.from_play import FromPlay, ObjectiveConfig
from tap_ray.training.accumulation import shares
from tap_ray.training.batches import ON_CPU, AugmentConfig, augment
from tests.contexts import SENTENCES, batch_with, policy_with


class Autocasting(_DummyBackendModule):
    """What torch.autocast asks a device for."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16]


_setup_privateuseone_for_python_backend("fakegpu", Autocasting())
GPU = torch.device("fakegpu", 0)


class Faked(TorchDispatchMode):
    """Fakes what reads a tensor on the GPU or makes one there; the CPU computes as always."""

    def __init__(self) -> None:
        super().__init__()
        self.fake = FakeTensorMode()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not any(isinstance(each, FakeTensor) or _is_gpu(each) for each in tree_leaves((args, kwargs))):
            return func(*args, **kwargs)
        args, kwargs = tree_map(self._known, (args, kwargs))
        with self.fake:
            return func(*args, **kwargs)

    def _known(self, value: Any) -> Any:
        real = isinstance(value, Tensor) and not isinstance(value, FakeTensor)
        return self.fake.from_tensor(value) if real else value

    def on_gpu(self, policy: Network, batch: Batch) -> Batch:
        """Move a model in place, and a batch but for what the model reads on the CPU."""
        for module in policy.modules():
            for name, value in list(module.named_parameters(recurse=False)):
                setattr(module, name, Parameter(self._there(value)))
            for name, value in list(module.named_buffers(recurse=False)):
                setattr(module, name, self._there(value))
        kept = (*ON_CPU, *policy.on_cpu)
        return {name: value if name in kept else self._there(value) for name, value in batch.items()}  # type: ignore[return-value, arg-type]

    def _there(self, tensor: Tensor) -> Tensor:
        with self.fake:
            return torch.empty(tensor.shape, dtype=tensor.dtype, device=GPU)


def _is_gpu(value: Any) -> bool:
    return isinstance(value, torch.device) and value == GPU


def stage_1(**objective: float) -> tuple[Network, Any, Batch]:
    config = ObjectiveConfig(**objective)
    policy = policy_with(*config.context, num_reach=NUM_REACH if config.next_object else 0)
    return policy, FromPlay(config=config, policy=policy), batch_with(*config.context)


def stage_2(*context: str, weights: CloningWeights, **config: Any) -> tuple[Network, Any, Batch]:
    policy = policy_with("language", *(set(context) - {"play"}), num_reach=NUM_REACH, **config)
    batch = batch_with("crops", *context)
    batch["task_index"] = torch.arange(len(batch["rgb"])) % 2
    tokens = encode(word_tokenizer(SENTENCES), SENTENCES, 8)
    return policy, BehaviorCloning(policy=policy, tokens_UL=tokens, weights=weights), batch


CASES = {
    "next object": lambda: stage_1(),
    "inverse dynamics": lambda: stage_1(next_object=0, inverse_dynamics=1),
    "both": lambda: stage_1(inverse_dynamics=1),
    "cloning": lambda: stage_2(weights=CloningWeights()),
    "cloning, crops": lambda: stage_2("crops", weights=CloningWeights(crops=1, context=1, reach=1, point=1)),
    "cloning, play": lambda: stage_2("crops", "play", weights=CloningWeights(play=1)),
}


def main(names: list[str]) -> None:
    """Take a step of each case, and print it."""
    for name in names:
        policy, objective, batch = CASES[name]()
        faked = Faked()
        batch = faked.on_gpu(policy, batch)
        optimizer = torch.optim.AdamW(policy.parameters())
        with faked:
            batches = shares(objective, [augment(batch, AugmentConfig(), seed=0, step=0, rank=0)] * 2)
            for one in batches:
                loss, parts = objective.loss(policy, one)
                loss.backward()
            optimizer.step()
        assert {value.device for value in (loss, *parts.values())} == {GPU}, name
        print(name)


if __name__ == "__main__":
    main(sys.argv[1:])
