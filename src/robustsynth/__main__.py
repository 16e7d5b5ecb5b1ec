"""``python -m robustsynth``."""

from robustsynth.cli import main

if __name__ == "__main__":
    main()
