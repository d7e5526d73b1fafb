-- Which collection of ChromaDB holds the copies. A new one is empty: every document is then marked for it.

CREATE TABLE collections (
    name text PRIMARY KEY,
    id   text NOT NULL
);
