"""The training loop, short enough to read, that can be stopped at any moment (lesson 00)."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from torch import nn

from cookbook.data import Loader, require_role
from cookbook.errors import UsageError
from cookbook.progress import progress_bar
from cookbook.training.checkpoint import checkpoint_path, deferred_interrupts
from cookbook.training.evaluation import evaluate, evaluate_across_ranks
from cookbook.training.parallel import Parallel
from cookbook.training.ranks import in_group
from cookbook.training.recipe import Recipe
from cookbook.training.run import EpochRecord, Objective, Run
from cookbook.training.shared_run import SharedRun


def fit(
    model: nn.Module,
    train: Loader,
    recipe: Recipe,
    *,
    validation: Loader | None = None,
    objective: Objective | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_every: int = 200,
    on_epoch: Callable[[EpochRecord], None] | None = None,
    progress: bool | None = None,
    parallel: Parallel | None = None,
) -> list[EpochRecord]:
    """Train `model` in place and return one record an epoch.

    With `checkpoint`, the run can be interrupted at any moment, by SIGKILL too: the same call
    resumes it and ends, on the same machine with the same number of threads, with the same weights
    bit for bit as an undisturbed run. SIGTERM and Ctrl-C save first and then leave. A finished run
    is not repeated: its weights are put into the model.

    Validation computes in float32, whatever the precision of the training. Under ``fp16`` a step whose
    gradients overflow is skipped and does not advance the schedule; the record of the epoch counts such
    steps and keeps the loss scale. On an accelerator losses are read every 50 steps, so that the host
    does not wait for the device.

    Args:
        model: on the device where it shall train. Ends with the averaged weights when the recipe
            has an `ema_decay`.
        train: batches to learn from; its role must be ``train``.
        recipe: everything else that decides the outcome.
        validation: evaluated after each epoch; its role must not be ``test``.
        objective: maps (model, images, labels) to a scalar mean loss; cross-entropy by default.
        checkpoint: file for the training state.
        checkpoint_every: optimizer steps between two writes; the end of an epoch always writes.
        on_epoch: called with each finished epoch's record, on every rank.
        progress: show a bar; None decides by terminal, JupyterLab and CI. Only rank 0 shows one.
        parallel: how several processes work together; without effect in a single one.

    Raises:
        UsageError: a split has the wrong role, nothing in the model can be trained, or a layer is
            unsafe in the channels-last format.
        DataError: `train` yields fewer batches than its length says.
        NonFiniteLossError: a loss is NaN or infinite; the message names epoch and step.
        CheckpointError: `checkpoint` is damaged or belongs to another training.
        RankError: the ranks were given different things, or another rank stopped.
        KeyboardInterrupt: Ctrl-C, after the state was saved. (SIGTERM: SystemExit with 143.)
    """
    require_role(train.role, ("train",), "train")
    if validation is not None:
        require_role(validation.role, ("train", "validation"), "choose between epochs")
    if checkpoint_every < 1:
        raise UsageError(f"checkpoint_every is {checkpoint_every}: use 1 or more steps.")
    alone = not in_group()
    run = Run(model, train, recipe, objective) if alone else SharedRun(model, train, recipe, objective, parallel)
    path = checkpoint_path(checkpoint)
    if path is not None:
        run.resume(path)
    at = run.at
    total = recipe.epochs * run.steps_per_epoch
    done = at.epoch * run.steps_per_epoch + at.step
    with deferred_interrupts(path is not None) as request, run.precision.matmul_mode(), \
            progress_bar("training", total, done=done, show=progress if run.first else False) as advance:  # fmt: skip
        interrupt = run.obey(request)
        while at.epoch < recipe.epochs:
            model.train()
            batches = run.batches()
            started = time.perf_counter() - at.seconds
            while at.step < run.steps_per_epoch:
                run.step(batches)
                at.step += 1
                at.seconds = time.perf_counter() - started
                advance(f"epoch {at.epoch + 1}/{recipe.epochs}")
                if interrupt.signal is not None:
                    run.save(path)
                    interrupt.stop(f"Stopped in epoch {at.epoch + 1} after step {at.step}; the same call resumes there.")
                if at.step % checkpoint_every == 0 and at.step < run.steps_per_epoch:
                    run.save(path)
            run.settle_statistics()
            judge = evaluate if alone else evaluate_across_ranks
            record = run.finish_epoch(None if validation is None else judge(run.evaluated_model, validation))
            run.save(path)
            if on_epoch is not None:
                on_epoch(record)
            if interrupt.signal is not None:
                interrupt.stop(f"Stopped after epoch {at.epoch} of {recipe.epochs}; the same call resumes there.")
    run.leave_result_in_model()
    return list(at.history)
