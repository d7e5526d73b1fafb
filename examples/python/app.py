"""Notes, one line of a file each."""

import asyncio
import os
from pathlib import Path

import uvicorn
from fastapi import FastAPI, Request

notes = Path(os.environ.get("NOTES", "notes.txt"))
app = FastAPI()


def count() -> int:
    return len(notes.read_text().splitlines()) if notes.exists() else 0


@app.get("/api/notes")
async def show():
    return {"notes": count(), "process": os.getpid()}


@app.post("/api/notes", status_code=201)
async def add(request: Request):
    with notes.open("a") as file:
        file.write((await request.body()).decode() + "\n")
    return {"notes": count(), "process": os.getpid()}


@app.get("/api/report")
async def report():
    await asyncio.sleep(1)
    return {"notes": count()}


@app.get("/healthz")
async def healthz():
    return {"status": "ok"}


if __name__ == "__main__":
    # PORT comes from Outrigger, which also sends SIGTERM once no request is left.
    uvicorn.run(app, host="127.0.0.1", port=int(os.environ["PORT"]), access_log=False, timeout_graceful_shutdown=8)
