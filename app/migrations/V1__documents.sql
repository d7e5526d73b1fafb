-- Documents, and which of them ChromaDB still has to hear about.

CREATE TABLE documents (
    id         uuid PRIMARY KEY,
    title      text,
    content    text NOT NULL,
    -- Kept here too, so that ChromaDB can always be brought up to date from this table alone.
    embedding  real[] NOT NULL,
    metadata   jsonb NOT NULL,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp()
);

CREATE INDEX documents_newest_first ON documents (created_at DESC, id DESC);

-- One row for each document whose state in ChromaDB may differ from the table above. It says "bring this document up to
-- date", not "do this": whoever works on it reads the document as it is then. So a late retry can never undo a delete.
CREATE TABLE outbox (
    document_id   uuid PRIMARY KEY,
    -- Grows with every write to the document. A row is finished only if nothing was written since it was claimed.
    generation    bigint NOT NULL DEFAULT 1,
    -- Who works on it, and until when that counts.
    claim         uuid,
    claimed_until timestamptz NOT NULL DEFAULT '-infinity',
    due_at        timestamptz NOT NULL DEFAULT clock_timestamp(),
    enqueued_at   timestamptz NOT NULL DEFAULT clock_timestamp(),
    attempts      integer NOT NULL DEFAULT 0,
    -- An earlier attempt ended without an answer and may still arrive: apply once more after the next success.
    doubtful      boolean NOT NULL DEFAULT false,
    -- When it was applied after such doubt; it waits to be applied that once more.
    applied_at    timestamptz,
    last_error    text
);

CREATE INDEX outbox_due ON outbox (due_at);
