"""Build the wheel, install it alone into an empty environment, and run the main job there on the weights inside it.

Not collected by pytest, as it builds and installs. The environment gets its own installation of the wheel; torch and the other
dependencies are those of the environment that runs this script, since installing them again would test the index only.
"""

import subprocess
import sys
import sysconfig
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).parents[1]


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        subprocess.run(
            [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, ROOT],
            check=True,
        )
        (wheel,) = folder.glob("*.whl")
        venv.create(folder / "empty", with_pip=True)
        python = folder / "empty" / "bin" / "python"
        subprocess.run(
            [python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", wheel], check=True
        )
        dependencies = next((folder / "empty" / "lib").glob("python*/site-packages")) / "dependencies.pth"
        dependencies.write_text(sysconfig.get_paths()["purelib"])
        where = [python, "-c", "import vit_analysis; print(vit_analysis.__file__)"]
        found = subprocess.run(where, cwd=folder, check=True, capture_output=True, text=True).stdout.strip()
        assert found.startswith(str(folder)), f"the wheel is not what runs: {found}"
        run = [
            python,
            "-m",
            "vit_analysis.cka",
            "--images.limit",
            "64",
            "--layers",
            "blocks",
            "--out",
            folder / "cka",
        ]
        subprocess.run(run, cwd=folder, check=True)
        assert (folder / "cka.parquet").stat().st_size > 0
        assert (folder / "cka.png").stat().st_size > 0
        size = wheel.stat().st_size / 1e6
        sys.stdout.write(f"{wheel.name} ({size:.1f} MB) runs the main job in an empty environment\n")


if __name__ == "__main__":
    main()
