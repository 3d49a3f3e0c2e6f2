"""`pelagos data`: looking at datasets, checking them, drawing them."""

import typer

app = typer.Typer(help="Inspect, verify and plot datasets.", no_args_is_help=True)
