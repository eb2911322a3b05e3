"""`python -m revisit`."""

from revisit.commands.main import start

if __name__ == "__main__":
    start()
