"""The policy with an image-text model as its backbone: same inputs and outputs as `policy.TapPolicy`.

N batch, L tokens, D width of the model, H chunk, A action slots.

    prompt (the model's own chat template)                      after it
    <image> ............ <image of the goal>     inverse dynamics  \\
    <image> ............ <crop> <crop>           next object        > query token --> head
    <image> ............ instruction             Stage 2           /

Instruction, crops or goal are only context: backbone and head are the same in both stages (arXiv 2607.02466). The head
reads the last hidden state of the query token, or a learned mean of all layers' (`VlmConfig.head_layers`):

    regression   two-layer MLP -> the chunk (the paper's text)
    flow         two-layer MLP -> a latent of motion -> the decoder of a motion prior (arXiv 2606.26095)
    tokens       the first of the chunk's FAST tokens, which follow one after another (the paper's released code)

The query token and the action tokens are new tokens after the vocabulary (`ActionWords`); the model's own vocabulary
and its language head are not changed. The state, if the policy reads it, is added to the query token.
"""

import contextlib
import inspect
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Iterator

import torch
from torch import Tensor, nn

from tap_ray.dataset.norm_stats import NormStats
from tap_ray.errors import ConfigError
from tap_ray.models.batch import Batch, Kept, moved
from tap_ray.models.fast import FastTokenizer
from tap_ray.models.heads import FlowHead, LayerMix, RegressionHead, before_goal, flow_outputs
from tap_ray.models.lora import add_lora, merged
from tap_ray.models.normalizer import Normalizer
from tap_ray.models.other_projects import load_other, starts_from_other
from tap_ray.models.placement import placed
from tap_ray.models.policy import PolicyConfig, acts
from tap_ray.models.prompt import Row, behind, images, prompt, sentences, with_crops
from tap_ray.models.token_head import TokenHead
from tap_ray.models.vlm_files import VlmFiles, new_model, vision_tower

if TYPE_CHECKING:
    from transformers import PreTrainedModel

QUERY = 1
"""Number of new tokens before the action tokens: only the query."""
READ_BY_PROCESSOR = ("rgb", "goal_rgb", "extra_rgb", "goal_extra_rgb", "object_crop", "place_crop", "crop_mask")
READ_BY_PROCESSOR += ("crop_px", "crop_px_mask", "tokens", "sentence")
"""Entries of a batch, with those that are shifted as the images are."""


@dataclass(frozen=True, kw_only=True)
class VlmParts:
    """What a saved policy needs besides its weights."""

    files: VlmFiles
    actions: FastTokenizer | None = None
    """Action tokens of a head of kind "tokens"."""


class ActionWords(nn.Module):
    """The model's word embeddings, followed by those of new tokens."""

    def __init__(self, base: nn.Embedding, num: int) -> None:
        super().__init__()
        self.base, self.first = base, base.num_embeddings
        self.added = nn.Embedding(num, base.embedding_dim)
        with torch.no_grad():  # as large as the others, which some models scale
            self.added.weight.normal_().mul_(base(torch.arange(min(64, self.first))).float().std())
        self._beside: Tensor | None = None

    @contextlib.contextmanager
    def beside(self, state_ND: Tensor | None) -> Iterator[None]:
        """While the body runs, add this to the embedding of each row's query token."""
        self._beside = state_ND
        try:
            yield
        finally:
            self._beside = None

    def forward(self, ids_NL: Tensor) -> Tensor:
        """(N, L, D)."""
        own_NL = ids_NL >= self.first
        words_NLD = self.base(ids_NL.masked_fill(own_NL, 0))
        added_NLD = self.added((ids_NL - self.first).clamp_min(0)).to(words_NLD.dtype)
        if self._beside is not None:
            query_NL1 = (ids_NL == self.first)[..., None]
            added_NLD = added_NLD + query_NL1 * self._beside[:, None].to(words_NLD.dtype)
        return torch.where(own_NL[..., None], added_NLD, words_NLD)


class VlmPolicy(nn.Module):
    """Images and a context in, normalized action chunks (and reach targets) out."""

    def __init__(self, config: PolicyConfig, parts: VlmParts, *, load_weights: bool = True) -> None:
        """
        Args:
            config: sizes; `config.vlm` says which model.
            parts: see `build.py`.
            load_weights: fetch the model's weights; False when a checkpoint follows anyway.

        Raises:
            CheckpointError: the model cannot be loaded.
            ConfigError: a history, which this backbone does not read.
        """
        super().__init__()
        if config.history:
            raise ConfigError("A VLM policy does not support a history. Omit --history.")
        self.config, self.parts = config, parts
        self.frozen_parts: tuple[str, ...] = ()
        self.action_scale = Normalizer(config.num_actions)
        other = starts_from_other(config.vlm)
        self.model = new_model(config.vlm, parts.files, load_weights=load_weights and not other)
        if other and load_weights:
            print(load_other(self.model, config.vlm))
        self._takes = set(inspect.signature(self.model.forward).parameters)
        width = parts.files.config.get_text_config().hidden_size
        self._prepare(self.model)
        num_words = QUERY + (parts.actions.num_tokens if parts.actions else 0)
        words = self.model.get_input_embeddings()
        assert isinstance(words, nn.Embedding)
        self.model.set_input_embeddings(ActionWords(words, num_words))
        if config.num_state and acts(config):
            self.state_scale = Normalizer(config.num_state)
            self.state_in = nn.Linear(config.num_state, width)
        if config.vlm.head_layers == "all":
            self.mix = LayerMix(parts.files.config.get_text_config().num_hidden_layers)
        self._add_heads(width)
        self.train()

    def _prepare(self, model: "PreTrainedModel") -> None:
        """Freeze the frozen parts, and add low-rank updates."""
        vlm = self.config.vlm
        parts = {"none": [], "vision": [vision_tower(model)], "all": [model]}
        self._frozen: list[nn.Module] = parts[vlm.freeze]
        for part in self._frozen:
            part.requires_grad_(False)
        if vlm.lora_rank:
            add_lora(model.get_decoder(), rank=vlm.lora_rank, alpha=vlm.lora_alpha)
        if vlm.checkpoint_activations:
            model.activation_checkpointing_enable()
            model.disable_input_require_grads()  # it also makes a frozen tower's input need a gradient

    def _add_heads(self, width: int) -> None:
        config, hidden = self.config, self.config.head_width
        if config.head == "tokens":
            if self.parts.actions is None:
                raise ConfigError('A head of kind "tokens" needs an action tokenizer (fit_fast or load_fast).')
            self.head = TokenHead(features=width, tokenizer=self.parts.actions)
            self.first_read = nn.Identity()
        if config.head != "tokens" or config.num_reach:
            self.readout = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU())
        if config.head == "regression":
            self.head = RegressionHead(features=hidden, chunk=config.chunk, num_actions=config.num_actions)
        elif config.head == "flow":
            sizes = {"num_actions": config.num_actions, "num_states": config.num_motion_states}
            self.head = FlowHead(features=hidden, width=hidden, prior=config.prior, **sizes)
        if config.num_reach:
            self.reach_scale = Normalizer(config.num_reach)
            self.reach = nn.Linear(hidden, config.num_reach)

    def set_norm(self, norm: NormStats) -> None:
        """Set the statistics to normalize with."""
        self.action_scale.set(norm.action.offset, norm.action.scale)
        if hasattr(self, "state_scale"):
            self.state_scale.set(norm.state.offset, norm.state.scale)
        if isinstance(self.head, FlowHead):
            self.head.state_scale.set(norm.state.offset, norm.state.scale)

    def freeze(self, part: str) -> None:
        """Freeze a part (e.g. "model")."""
        self.get_submodule(part).requires_grad_(False).eval()
        self.frozen_parts += (part,)

    def train(self, mode: bool = True) -> "VlmPolicy":
        """Frozen parts stay in evaluation mode."""
        super().train(mode)
        for part in [*self._frozen, *(self.get_submodule(name) for name in self.frozen_parts)]:
            part.eval()
        return self

    @property
    def words(self) -> ActionWords:
        """The model's word embeddings."""
        words = self.model.get_input_embeddings()
        assert isinstance(words, ActionWords)
        return words

    @property
    def last(self) -> nn.Module:
        """The module whose input are the features of "action"."""
        return self.first_read if self.config.head == "tokens" else self.head

    def exported(self) -> tuple[PolicyConfig, dict[str, Tensor]]:
        """Config and weights of the saved policy, with low-rank updates merged."""
        return replace(self.config, vlm=replace(self.config.vlm, lora_rank=0)), merged(self)

    @property
    def on_cpu(self) -> tuple[str, ...]:
        """Entries of a batch that stay on the CPU, because the model's processor or the action tokenizer reads them
        there: fetching them from a GPU would wait for it."""
        return READ_BY_PROCESSOR + (("action", "action_mask", "k") if self.config.head == "tokens" else ())

    def forward(self, batch: Batch | Kept) -> dict[str, Tensor]:
        """
        Args:
            batch: as `TapPolicy.forward`: "rgb" and an instruction, crops or a goal image, where there are several in
                this order; "state" with `num_state`; the targets "action" and "action_mask". Those that are `on_cpu`
                may be on the device, too.

        Returns:
            "action" (N, H, A) normalized under the first of these contexts, "reach" (N, R) with a reach head; under the
            others "crop_action", "inverse_action", "play_action" ... A head that is trained by a loss of its own gives
            that where there are targets, "pred" (of a flow also "align" and "recon", "inverse_pred" under a goal), and
            "action" in evaluation mode only.
        """
        batch, out = batch.batch if isinstance(batch, Kept) else batch, {}
        for name, (rows, state_NS) in self.views(batch).items():
            targets: Batch = batch if name in ("", "crop_") else {}
            if name == "inverse_" or self.config.context == ("goal",):
                targets = _until_goal(batch)
            out |= {f"{name}{key}": value for key, value in self._heads(rows, state_NS, targets).items()}
        return out

    def views(self, batch: Batch) -> dict[str, tuple[list[Row], Tensor | None]]:
        """Rows of the prompt and their states, by the prefix of the outputs."""
        views: dict[str, tuple[list[Row], Tensor | None]] = {}
        rgb = images(batch, "rgb", "jitter")
        if "tokens" in batch:
            texts = sentences(self.parts.files, batch["tokens"])
            rows = [Row(one, texts[at]) for one, at in zip(rgb, batch["sentence"].tolist(), strict=True)]
            views[""] = (rows, batch.get("state"))
        if "object_crop" in batch:
            views["crop_" if views else ""] = (with_crops(rgb, batch, ""), batch.get("state"))
        if "play_object_crop" in batch:
            play = images(batch, "play_rgb", "play_jitter")
            views["play_"] = (with_crops(play, batch, "play_"), batch.get("play_state"))
        if "goal_rgb" in batch or "goal_row" in batch:
            given = "goal_rgb" in batch
            goal = images(batch, "goal_rgb", "jitter") if given else [rgb[row] for row in batch["goal_row"].tolist()]
            views["inverse_" if views else ""] = (
                [Row([*now, *then]) for now, then in zip(rgb, goal, strict=True)],
                None,
            )
        return views

    def _heads(self, rows: list[Row], state_NS: Tensor | None, batch: Batch) -> dict[str, Tensor]:
        """Outputs of the heads for rows of a prompt; see `forward`."""
        given = prompt(self.parts.files, rows, query=self.words.first, multiple=self.config.vlm.pad_tokens)
        reads_state = self.config.num_state and state_NS is not None
        state_ND = self.state_in(self.state_scale(state_NS)) if reads_state else None
        if isinstance(self.head, TokenHead):
            return self._tokens(given, state_ND, batch)
        read_NF = self.readout(self.hidden_states(given, state_ND, first=-1)[:, -1])
        out = {"reach": self.reach(read_NF)} if self.config.num_reach else {}
        if isinstance(self.head, FlowHead):
            return out | flow_outputs(self.head, read_NF, batch, self.action_scale, acts=not self.training)
        return out | {"action": self.head(read_NF)}

    def hidden_states(self, given: dict[str, Tensor], state_ND: Tensor | None, *, first: int = 0) -> Tensor:
        """(N, L - first, D) what the head reads of a prompt, from its token `first` on: the last hidden states, or the
        mean of all layers'."""
        return self._read(self._run(self.arguments(given), state_ND, use_cache=False), first)

    def _read(self, read: Any, first: int) -> Tensor:
        if self.config.vlm.head_layers == "all":  # the first ones are the words before any layer
            return self.mix([hidden[:, first:] for hidden in read.hidden_states[1:]], self._head_dtype)
        return read.last_hidden_state[:, first:].to(self._head_dtype)

    def arguments(self, given: dict[str, Tensor]) -> dict[str, Any]:
        """What the model takes of a prompt."""
        given = {name: value for name, value in given.items() if name in self._takes}
        return placed(self.model, given, self.action_scale.scale.device)

    @property
    def _head_dtype(self) -> torch.dtype:
        return self.words.added.weight.dtype

    def _run(self, given: dict[str, Any], state_ND: Tensor | None, **more: Any) -> Any:
        more |= {"output_hidden_states": True} if self.config.vlm.head_layers == "all" else {}
        with self.words.beside(state_ND):
            return self.model(**given, **more)

    def _tokens(self, given: dict[str, Tensor], state_ND: Tensor | None, batch: Batch) -> dict[str, Tensor]:
        """The loss of the chunk's tokens where there are targets, the chunk in evaluation mode."""
        assert isinstance(self.head, TokenHead)
        out: dict[str, Tensor] = {}
        if "action" in batch:
            target_NT = self.head.targets(self.action_scale(batch["action"]), batch["action_mask"])
            first = given["input_ids"].shape[1] - 1
            ids_NT = torch.where(target_NT >= 0, self.action_words(target_NT), self.words.first)[:, :-1]
            taught = behind(given, ids_NT, target_NT[:, :-1] >= 0)
            hidden_NTD = self.hidden_states(taught, state_ND, first=first)
            out["pred"] = self.head.loss(hidden_NTD, moved(target_NT, hidden_NTD.device))
            if self.config.num_reach:
                out["reach"] = self.reach(self.readout(hidden_NTD[:, 0]))
        elif self.config.num_reach:
            out["reach"] = self.reach(self.readout(self.hidden_states(given, state_ND, first=-1)[:, -1]))
        if not self.training:
            out["action"] = self._decode(given, state_ND)
        return out

    def action_words(self, token: Tensor) -> Tensor:
        """Token ids of action tokens in the model's vocabulary."""
        return self.words.first + QUERY + token

    @torch.no_grad()
    def _decode(self, given: dict[str, Tensor], state_ND: Tensor | None) -> Tensor:
        """(N, H, A): the likeliest allowed token each time; what was read before is kept (KV cache)."""
        assert isinstance(self.head, TokenHead)
        given = self.arguments(given)
        num, device = len(given["input_ids"]), given["input_ids"].device
        left_N = torch.full((num,), self.head.tokenizer.num_numbers, device=device)
        utf8_N = torch.zeros_like(left_N)
        mask_NL, tokens = given["attention_mask"], []
        read = self._run(given, state_ND, use_cache=True)
        hidden_ND = self.first_read(self._read(read, -1)[:, -1])
        while True:
            token_N, left_N, utf8_N = self.head.choose(hidden_ND, left_N, utf8_N)
            tokens.append(token_N)
            if not bool((left_N > 0).any()):
                return self.head.decode(torch.stack(tokens, 1))
            mask_NL = torch.cat([mask_NL, mask_NL.new_ones(num, 1)], 1)
            step = {"input_ids": self.action_words(token_N.clamp_min(0))[:, None], "attention_mask": mask_NL}
            if "position_ids" in given:  # those of an image's words are its rows and columns, so they are not counted
                step["position_ids"] = given["position_ids"][..., -1:] + len(tokens)
            read = self._run(step, None, cache=read.cache, use_cache=True)
            hidden_ND = self._read(read, -1)[:, -1]


def _until_goal(batch: Batch) -> Batch:
    """Targets of inverse dynamics."""
    if "k" not in batch or "action_mask" not in batch:
        return batch
    return batch | {"action_mask": before_goal(batch["action_mask"], batch["k"])}
