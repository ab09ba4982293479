"""What `serve` is compared with: python -m jaxcls.benchmark.fastapi_loop RUN

A plain FastAPI server around the same network, as a user would write it: a request is a call of
`predict`, in one of FastAPI's threads. The first line that it prints is its address.
"""

import socket
import sys

import uvicorn
from fastapi import Body, FastAPI

import jaxcls

app = FastAPI()
model = None


@app.post("/predict")
def predict(image: bytes = Body(media_type="application/octet-stream")) -> dict:
    """Returns what an image shows."""
    [answer] = model.predict(image)
    return {"predictions": [{"classes": answer.classes, "probabilities": answer.probabilities}]}


def main() -> None:
    global model
    from jaxcls.command import start_jax

    start_jax()
    model = jaxcls.load(sys.argv[1], report=lambda line: None)
    model.probabilities([model.blank])
    listening = socket.create_server(("127.0.0.1", 0), backlog=2048)
    print("http://{}:{}".format(*listening.getsockname()), flush=True)
    config = uvicorn.Config(app, log_level="error", access_log=False)
    uvicorn.Server(config).run(sockets=[listening])


if __name__ == "__main__":
    main()
