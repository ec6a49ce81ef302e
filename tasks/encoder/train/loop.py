"""The training loop of teacher and student: schedule, clipping, EMA, checkpoints, and the loss curve."""

import math
import resource
import time
from collections.abc import Callable, Collection
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from tasks.encoder.config import Recipe
from tasks.encoder.train.checkpoint import (
    latest,
    optimizer_tensors,
    restore_optimizer,
    save_step,
    with_prefix,
    without_prefix,
)
from tasks.encoder.train.distributed import ProcessGroup
from tasks.errors import TrainingError
from tasks.progress import Progress

MetricLog = Callable[[str, float, int], None]
Losses = Callable[[int], dict[str, Tensor]]
"""The named losses of one batch, by its number (step * accumulate + part). "loss" is what is minimised, the same on every process."""


@dataclass(frozen=True)
class Curve:
    """Loss of every step, and the cost in this process (a resumed training counts its own part). Empty: no training."""

    loss: tuple[float, ...] = ()
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    images_per_s: float = 0.0
    peak_memory_bytes: int = 0


def no_log(name: str, value: float, step: int) -> None:
    """A MetricLog that discards."""


def learning_rate(step: int, recipe: Recipe) -> float:
    """Learning rate of a step (from 0): linear warm-up, then cosine decay to zero."""
    rising = max(1, round(recipe.steps * recipe.warm_up))
    if step < rising:
        return recipe.learning_rate * (step + 1) / rising
    share = (step - rising) / max(1, recipe.steps - rising)
    return recipe.learning_rate * 0.5 * (1 + math.cos(math.pi * share))


def optimise(
    name: str,
    module: nn.Module,
    losses: Losses,
    recipe: Recipe,
    key: str,
    images: int,
    steps: str | Path,
    log: MetricLog,
    replicas: ProcessGroup | None = None,
    pretrained: Collection[str] = (),
) -> tuple[nn.Module, Curve]:
    """Trains `module` in place for `recipe.steps` steps, then loads the averaged (EMA) weights into it.

    Resumes from the newest checkpoint below the folder `steps` (local or s3://) whose key is `key`; a resumed training takes the
    same steps as one that was never stopped. Raises TrainingError on a loss that is not a number, and on a damaged checkpoint.
    `images` is the number of pictures in a step, for the rate that is logged. Of several `replicas` the first saves and logs; all
    resume. The parameters named in `pretrained` learn at the recipe's share of the rate.
    """
    steps = str(steps)
    replicas = replicas or ProcessGroup()
    parameters = [p for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(_groups(module, recipe, pretrained), lr=recipe.learning_rate, fused=True)
    average = {k: v.detach().clone() for k, v in module.state_dict().items()}
    start, loss_curve = _resume(module, optimizer, average, key, steps)
    clock, cpu = time.perf_counter(), time.process_time()
    _train_mode(module, recipe)
    with Progress(name, recipe.steps, "steps") as progress:
        progress.set(start)
        for step in range(start, recipe.steps):
            began = time.perf_counter()
            rate = learning_rate(step, recipe)
            for group in optimizer.param_groups:
                group["lr"] = rate * group["share"]
            seen = _one_step(parameters, optimizer, losses, step, recipe, replicas)
            if not all(math.isfinite(v) for v in seen.values()):
                raise TrainingError(
                    f"{name}: the loss is not a number at step {step} ({seen}); lower the learning rate "
                    f"(it was {rate:.2g}) or train in fp32"
                )
            _follow(average, module, min(recipe.ema_decay, (1 + step) / (10 + step)))
            loss_curve.append(seen["loss"])
            if not replicas.first:
                continue
            for key_, value in seen.items():
                log(f"{name}.{key_}", value, step)
            log(f"{name}.learning_rate", rate, step)
            log(f"{name}.images_per_s", images / (time.perf_counter() - began), step)
            progress.set(step + 1, f"loss {seen['loss']:.3f}")
            if (step + 1) % recipe.checkpoint_every == 0 and step + 1 < recipe.steps:
                _save(module, optimizer, average, key, loss_curve, steps, step + 1)
    seconds = time.perf_counter() - clock
    module.load_state_dict(average)
    module.eval()
    done = recipe.steps - start
    rate = done * images / seconds if seconds and done else 0.0
    return module, Curve(tuple(loss_curve), seconds, time.process_time() - cpu, rate, peak_memory_bytes())


def _train_mode(module: nn.Module, recipe: Recipe) -> None:
    module.train()
    for part in module.modules() if recipe.frozen_norm else ():
        if isinstance(part, _BatchNorm):
            part.eval()


def peak_memory_bytes() -> int:
    """Peak memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _one_step(
    parameters: list[nn.Parameter],
    optimizer: torch.optim.Optimizer,
    losses: Losses,
    step: int,
    recipe: Recipe,
    replicas: ProcessGroup,
) -> dict[str, float]:
    optimizer.zero_grad(set_to_none=True)
    seen: dict[str, float] = {}
    for part in range(recipe.accumulate):
        last = part == recipe.accumulate - 1
        with nullcontext() if last else replicas.no_sync():
            found = losses(step * recipe.accumulate + part)
            (found["loss"] / recipe.accumulate).backward()
        for name, value in found.items():
            seen[name] = seen.get(name, 0.0) + float(value.detach()) / recipe.accumulate
    norm = torch.nn.utils.clip_grad_norm_(parameters, recipe.clip)
    seen["gradient_norm"] = float(norm)
    if math.isfinite(seen["gradient_norm"]):
        optimizer.step()
    return seen


def _groups(module: nn.Module, recipe: Recipe, pretrained: Collection[str]) -> list[dict]:
    """Parameter groups: matrices and kernels with weight decay; biases, norms and the temperature without; each new or pretrained."""
    found: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            share = recipe.pretrained_rate if name in pretrained else 1.0
            found.setdefault((recipe.weight_decay if parameter.ndim >= 2 else 0.0, share), []).append(parameter)
    return [{"params": found[key], "weight_decay": key[0], "share": key[1]} for key in sorted(found, reverse=True)]


@torch.no_grad()
def _follow(average: dict[str, Tensor], module: nn.Module, decay: float) -> None:
    """Updates the moving average of the weights; counters are copied."""
    state = module.state_dict()
    floating = [k for k, v in state.items() if v.is_floating_point()]
    torch._foreach_lerp_([average[k] for k in floating], [state[k] for k in floating], 1.0 - decay)
    for k, v in state.items():
        if not v.is_floating_point():
            average[k].copy_(v)


def _save(
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: dict[str, Tensor],
    key: str,
    curve: list[float],
    steps: str,
    step: int,
) -> None:
    tensors = with_prefix("model", module) | {f"average.{k}": v for k, v in average.items()} | optimizer_tensors(optimizer)
    save_step(steps, step, tensors, {"key": key, "step": step, "loss": curve})


def _resume(
    module: nn.Module, optimizer: torch.optim.Optimizer, average: dict[str, Tensor], key: str, steps: str
) -> tuple[int, list[float]]:
    found = latest(steps)
    if found is None or found.values["key"] != key:
        return 0, []
    module.load_state_dict(without_prefix("model", found.tensors))
    average.update({k: v.to(average[k].device) for k, v in without_prefix("average", found.tensors).items()})
    restore_optimizer(optimizer, found.tensors)
    return int(found.values["step"]), list(found.values["loss"])
