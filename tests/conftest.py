"""What holds for every test: figures need no screen, and nothing is fetched."""

import os

os.environ["MPLBACKEND"] = "Agg"
os.environ["HF_HUB_OFFLINE"] = "1"  # where weights are missing, timm fails at once instead of asking the network
