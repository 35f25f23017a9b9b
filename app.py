"""lycogui: train LyCORIS adapters by point and click. `python app.py --help` lists the options."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

# What is served, and to whom, is said on our command line only.
IGNORED = ("GRADIO_SHARE", "GRADIO_SERVER_NAME", "GRADIO_SERVER_PORT", "GRADIO_ALLOWED_PATHS",
           "GRADIO_ROOT_PATH", "GRADIO_MCP_SERVER", "GRADIO_VIBE_MODE", "GRADIO_RUN_HISTORY")


def main() -> int:
    options = _options()
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: see lycoris/__main__.py
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    for name in IGNORED:
        os.environ.pop(name, None)
    import lycoris

    if Path(lycoris.__file__).resolve().parent != Path(__file__).resolve().parent / "lycoris":
        sys.stderr.write(
            f"Another package called lycoris is in the way: {lycoris.__file__}.\n"
            "Start lycogui from its own folder, in an environment without lycoris-lora.\n")
        return 2
    from lycogui import server

    return server.serve(options.host, options.port, Path(options.settings),
                        share=options.share, window=options.window)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train and compare LyCORIS adapters.")
    parser.add_argument("--host", default="127.0.0.1",
                        help="address to listen on (default: this machine only)")
    parser.add_argument("--port", type=int, default=7860, help="first port to try (default: 7860)")
    parser.add_argument("--share", action="store_true",
                        help="a public address through Gradio's servers, for a day; off by default")
    parser.add_argument("--window", choices=("auto", "browser", "none"), default="auto",
                        help="auto: a window of its own where a browser can; none: just print the "
                             "address")
    parser.add_argument("--settings", default=str(Path(__file__).parent / "settings/last.toml"),
                        help="file that keeps what is set on the page")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
