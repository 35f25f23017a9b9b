"""How the embedded base model `assets/tiny-sd` and its sample dataset are made.

`python -m assets.recipe all` draws the pictures, trains the model and measures it. Drawing and the
checker need numpy, Pillow and torch only.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: spinning threads starve others
