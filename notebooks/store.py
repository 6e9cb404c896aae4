"""Run the notebooks, and store what they show: ``python notebooks/store.py [NAME.ipynb …]`` (default: all).

Each runs in an empty folder, so that the outputs name no path of this machine, and nothing is left in the checkout.
What differs from run to run without being shown (times, identifiers of displays) is not stored.
"""

import argparse
import os
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
SECONDS = 300  # for one cell


def run(path: Path, folder: Path) -> Any:
    """Return a notebook as it is after it was run from top to bottom.

    Args:
        path: the notebook's file.
        folder: where it runs and writes.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell raised; the message shows the cell and the traceback.
    """
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(path, as_version=4)
    # Neither the user's start-up files nor their history take part, and one thread gives the same sums everywhere.
    environment = {
        **os.environ,
        "IPYTHONDIR": str(folder / ".ipython"),
        "OMP_NUM_THREADS": "1",
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",
        "NO_COLOR": "1",
    }
    client = NotebookClient(
        notebook, timeout=SECONDS, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    )
    client.execute(env=environment)
    return notebook


def cleaned(notebook: Any) -> Any:
    """Return the notebook without what differs from run to run."""
    for cell in notebook.cells:
        cell.metadata = {}
        for output in cell.get("outputs", []):
            output.pop("metadata", None) if output.output_type == "stream" else output.update(metadata={})
            if "text/plain" in output.get("data", {}) and len(output["data"]) > 1:
                output["data"]["text/plain"] = output["data"]["text/plain"].partition(" at 0x")[0]
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    return notebook


def main() -> None:
    """Run and store."""
    import nbformat

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("notebooks", nargs="*", type=Path, default=sorted(HERE.glob("*.ipynb")))
    for path in parser.parse_args().notebooks:
        with tempfile.TemporaryDirectory() as folder:
            nbformat.write(cleaned(run(path, Path(folder))), path)
        print(f"{path.name}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
