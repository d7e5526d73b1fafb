// Notes, one line of a file each. PORT comes from Outrigger.
const fs = require("node:fs");
const express = require("express");

const notes = process.env.NOTES ?? "notes.txt";
const app = express();
app.disable("x-powered-by");

const count = () => (fs.existsSync(notes) ? fs.readFileSync(notes, "utf8").split("\n").length - 1 : 0);
app.get("/api/notes", (_, response) => response.json({ notes: count(), process: process.pid }));
app.post("/api/notes", express.text({ type: () => true }), (request, response) => {
  fs.appendFileSync(notes, `${request.body}\n`);
  response.status(201).json({ notes: count(), process: process.pid });
});
app.get("/api/report", (_, response) => setTimeout(() => response.json({ notes: count() }), 1000));
app.get("/health", (_, response) => response.send("ok"));

// Outrigger sends SIGTERM once no request is left; idle connections are closed here.
const server = app.listen(Number(process.env.PORT), "127.0.0.1");
process.on("SIGTERM", () => server.close());
