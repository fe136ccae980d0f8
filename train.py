"""Prunes a network at initialization and trains it: ``python -m snipjax.train``."""

from snipjax import train

if __name__ == "__main__":
    train.main()
