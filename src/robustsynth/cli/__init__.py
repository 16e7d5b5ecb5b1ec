"""The command line. Torch is imported inside the commands, so that ``--help`` starts at once."""

from __future__ import annotations

import errno
from typing import Any

import click

from robustsynth.cli.progress import STOPPED, say
from robustsynth.errors import UserError


class Commands(click.Group):
    """Commands imported when they are called or listed, and errors for people: one message, exit code 2."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        from robustsynth.tasks.table import TASKS

        others = ["features", "compare", "train", "evaluate", "import", "publish", "models", "demo"]
        return [*TASKS, *others]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        import importlib

        from robustsynth.tasks.table import TASKS

        if cmd_name not in self.list_commands(ctx):
            return None
        if cmd_name in TASKS and cmd_name != "generate":
            return importlib.import_module("robustsynth.cli.options").task_command(TASKS[cmd_name])
        if cmd_name in ("import", "publish"):
            return getattr(importlib.import_module("robustsynth.cli.models"), f"{cmd_name}_command")
        return importlib.import_module(f"robustsynth.cli.{cmd_name}").command

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except UserError as error:
            raise click.UsageError(str(error)) from None
        except KeyboardInterrupt:
            # Before or after the part that it stops at a step of.
            say("stopped")
            raise SystemExit(STOPPED) from None
        except BrokenPipeError:
            raise
        except OSError as error:
            # A full disk or a folder that may not be written to is the user's to mend; what was written is whole.
            hint = "; free some space and run the same command again" if error.errno == errno.ENOSPC else ""
            raise click.UsageError(f"{error.strerror or error}: {error.filename or 'the disk'}{hint}") from None


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="robustsynth")
def main() -> None:
    """Image synthesis with a single adversarially robust classifier.

    Begin with: robustsynth generate --model cifar10 --classes ship,horse --out ships
    """
