"""An ASGI application on uvicorn and uvloop: it counts its requests and says what it is and since when."""

# mypy: ignore-errors

import asyncio
import itertools
import time

import uvicorn

BORN = time.time_ns()
COUNT = itertools.count(1)


async def application(scope, receive, send):
    if scope["type"] != "http":
        return
    body = f"{next(COUNT)} {type(asyncio.get_running_loop()).__module__} {BORN}\n".encode()
    headers = [(b"content-type", b"text/plain"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


# uvicorn's 5 s of keep-alive run while it is frozen; the test is not about them.
uvicorn.run(application, host="0.0.0.0", port=8080, timeout_keep_alive=60)
