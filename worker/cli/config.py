"""packhorse config: check, show."""

from __future__ import annotations

import typer

from schedules.config import load_plan
from worker.cli.common import AsJson
from worker.cli.render import print_json, print_rows
from worker.config import Settings, load_settings, shown
from worker.errors import ConfigError
from worker.exits import EXIT_OK

app = typer.Typer(no_args_is_help=True, help="Settings, from environment and packhorse.toml.")


@app.command()
def check(as_json: AsJson = False) -> int:
    """Validate every setting and policy; prints all problems at once and exits 2 when there are any."""
    problems: list[str] = []
    for load in (load_settings, load_plan):
        try:
            load()
        except ConfigError as error:
            # a file that is not TOML is found by both
            problems += [problem for problem in error.problems if problem not in problems]
    if problems:
        raise ConfigError(problems)
    if as_json:
        print_json({"ok": True})
    else:
        print("the configuration is good")
    return EXIT_OK


@app.command()
def show(as_json: AsJson = False) -> int:
    """Every setting with its value; passwords are not shown."""
    values = shown(load_settings())
    if as_json:
        print_json(values)
    else:
        print_rows(
            [{"setting": name, "value": value, "meaning": Settings.model_fields[name].description} for name, value in values.items()],
            ["setting", "value", "meaning"],
            empty="no settings",
        )
    return EXIT_OK
