"""The server side as a Flower app, for `flwr run`: rounds into the run folder that the run configuration names (`out`)."""

from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from tenfold import UserError
from tenfold.runs import RunFolder
from twinsight.config import FederationConfig, from_run_config
from twinsight.training.loop import federate


def make_server_app(config: FederationConfig | None = None, out: Path | None = None, resume: bool = False) -> ServerApp:
    """A server app.

    Args:
        config: of the federation; None reads it from the run configuration that Flower hands over.
        out: the run folder; None takes `out` of the run configuration.
        resume: go on with the run in the folder.
    """
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        """All rounds of a federation."""
        values = dict(context.run_config)
        folder = Path(str(values.get("out") or "run")) if out is None else out
        goes_on = bool(values.get("resume", False)) or resume
        patience = values.get("patience", 3600)
        if isinstance(patience, bool) or not isinstance(patience, int | float) or not 0 < patience < float("inf"):
            raise UserError(f"run configuration: patience is {patience!r}, not a number of seconds above 0")
        chosen = config or from_run_config(values)
        federate(grid, chosen, RunFolder.create(folder, chosen, goes_on), patience=float(patience))

    return app


app = make_server_app()
