// What a path reaches in Express, with its defaults: capitals and a slash at the end make no difference to it.
const express = require("express");

const app = express();
const handler = (name) => (_, response) => response.type("text/plain").send(name);
app.get("/api/login", handler("login"));
app.get("/items/:id/export", handler("export"));
app.get("/items/:id", handler("item"));
app.get("/files/*path", handler("files"));
app.get("/health", handler("health"));
app.get("/metrics", handler("metrics"));
app.get("/{*path}", handler("other"));
app.listen(Number(process.argv[2]), "127.0.0.1");
