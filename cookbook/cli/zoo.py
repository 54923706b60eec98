"""`cookbook zoo`: which of torchvision's models go all the way to a served file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cookbook.errors import CookbookError, UsageError
from cookbook.files import atomic_path


def zoo(
    names: Annotated[
        list[str] | None, typer.Argument(help="Image classifiers of torchvision; without any, fourteen families.")
    ] = None,
    size: Annotated[int, typer.Option(help="Height and width of the images, in pixels.")] = 224,
    out: Annotated[Path | None, typer.Option(help="Also write the table as Markdown, such as table.md.")] = None,
) -> None:
    """Export, simplify, compare and serve torchvision models with random weights, and print what passes.

    Every model has its turn, whatever happens to the others. Where an upstream limit stops a step, the
    table names its issue. It takes about five minutes, and nothing is downloaded.

    Exit status 1 if a step fails without a known limit.

    Example: cookbook zoo resnet18 vit_b_16 --out table.md
    """
    from cookbook.zoo import ZOO, run_zoo, zoo_table

    if size < 1:
        raise UsageError(f"--size is {size}: use a number of pixels, such as 224.")
    rows = run_zoo(names or ZOO, size=size)
    table = zoo_table(rows)
    print(table)
    if out is not None:
        with atomic_path(out) as temporary:
            temporary.write_text(f"{table.to_markdown()}\n", encoding="utf-8")
        print(f"{out} written.")
    failures = [sentence for row in rows for sentence in row.stopped("fail")]
    if failures:
        raise CookbookError(f"{len(failures)} steps failed without a known limit, first {failures[0]}")
