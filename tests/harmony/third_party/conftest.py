"""Only tests are collected: the lists import packages that need not be installed."""

collect_ignore_glob = ["*_models.py", "transformers_*.py"]
