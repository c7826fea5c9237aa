"""An example client: `python -m workers.sglang.client -k KEY -e NAME`. It runs the OpenAI worker's client."""

from lib.client import run_client
from workers.openai.client import main

if __name__ == "__main__":
    run_client(main)
