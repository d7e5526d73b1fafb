-- The audit trail of all Machines. trail/src/store.rs is what reads and writes it; docs/audit.md says what an entry is.

-- Entries. `entry` is the exact line that was written and signed for; the other columns are what is searched for in it.
-- The app's own entries are in no chain: theirs is called 'app', and they have no number in it.
CREATE TABLE audit_events (
    class      text        NOT NULL,
    time       timestamptz NOT NULL,
    id         uuid        NOT NULL,
    chain      text        NOT NULL,
    seq        bigint      CHECK (seq > 0),
    machine    text        NOT NULL,
    type       text        NOT NULL,
    action     text        NOT NULL,
    outcome    text        NOT NULL CHECK (outcome IN ('success', 'failure', 'error', 'refused')),
    status     integer,
    actor      text        NOT NULL,
    client     text,
    request_id text,
    route      text,
    entry      text        NOT NULL,
    CHECK ((chain = 'app') = (seq IS NULL)),
    PRIMARY KEY (class, time, id)
) PARTITION BY LIST (class);

CREATE INDEX ON audit_events (actor, time);
CREATE INDEX ON audit_events (client, time);
CREATE INDEX ON audit_events (request_id);
CREATE INDEX ON audit_events (chain, seq);
CREATE INDEX ON audit_events (type, time);

-- Each has a partition for each month, made when it is needed: what expires is dropped, not deleted row by row.
CREATE TABLE audit_events_security PARTITION OF audit_events FOR VALUES IN ('security') PARTITION BY RANGE (time);
CREATE TABLE audit_events_authentication PARTITION OF audit_events FOR VALUES IN ('authentication') PARTITION BY RANGE (time);
CREATE TABLE audit_events_data PARTITION OF audit_events FOR VALUES IN ('data') PARTITION BY RANGE (time);
CREATE TABLE audit_events_administration PARTITION OF audit_events FOR VALUES IN ('administration') PARTITION BY RANGE (time);
CREATE TABLE audit_events_deletion PARTITION OF audit_events FOR VALUES IN ('deletion') PARTITION BY RANGE (time);

-- How far each chain has come: what a row that is missing at its end is missed by.
CREATE TABLE audit_chains (
    chain   text        NOT NULL,
    class   text        NOT NULL,
    machine text        NOT NULL,
    last    bigint      NOT NULL,
    seen    timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (chain, class)
);

-- The signed lines of segments, exactly as they were written.
CREATE TABLE audit_checkpoints (
    chain text   NOT NULL,
    class text   NOT NULL,
    kind  text   NOT NULL CHECK (kind IN ('header', 'checkpoint')),
    first bigint NOT NULL,
    last  bigint NOT NULL,
    -- SHA-256 of the line: the next segment after an empty one begins with the same numbers.
    hash  bytea  NOT NULL,
    line  text   NOT NULL,
    PRIMARY KEY (chain, class, kind, hash)
);
CREATE INDEX ON audit_checkpoints (chain, class, first, last);

-- Lines that could not be stored as what they say they are: kept as they came, so that nothing is lost.
CREATE TABLE audit_refused (
    id      bigserial   PRIMARY KEY,
    chain   text        NOT NULL,
    class   text        NOT NULL,
    machine text        NOT NULL,
    at      timestamptz NOT NULL DEFAULT clock_timestamp(),
    hash    bytea       NOT NULL,
    line    bytea       NOT NULL,
    why     text        NOT NULL,
    UNIQUE (chain, class, hash)
);

-- The keys of subjects, wrapped. Whoever destroys one makes what it has sealed unreadable, wherever that is stored.
CREATE TABLE audit_keys (
    id      text        PRIMARY KEY,
    subject text        NOT NULL,
    master  text        NOT NULL,
    wrapped text        NOT NULL,
    created timestamptz NOT NULL,
    -- Who the subject is, sealed with this key. It goes with it.
    sealed  text        NOT NULL
);
CREATE INDEX ON audit_keys (subject);
CREATE INDEX ON audit_keys (created);

-- Who was forgotten. Every spool hears of each by its number, and forgets too.
CREATE TABLE audit_erasures (
    number  bigserial   PRIMARY KEY,
    subject text        NOT NULL,
    at      timestamptz NOT NULL DEFAULT clock_timestamp(),
    by      text        NOT NULL,
    reason  text,
    keys    integer     NOT NULL,
    receipt text
);
CREATE INDEX ON audit_erasures (subject, number);

-- Keys that must never come back, also not by a batch that was under way.
CREATE TABLE audit_erased_keys (
    id text        PRIMARY KEY,
    at timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- What is kept beyond its time: a class, what is about subjects (their pseudonyms), or what is both.
CREATE TABLE audit_holds (
    id       bigserial   PRIMARY KEY,
    class    text,
    subjects text[],
    reason   text        NOT NULL,
    by       text        NOT NULL,
    since    timestamptz NOT NULL DEFAULT clock_timestamp(),
    released timestamptz,
    CHECK (class IS NOT NULL OR cardinality(subjects) > 0)
);

-- What retention has removed, and the entry of the trail that says so, once it is written.
CREATE TABLE audit_drops (
    id          bigserial   PRIMARY KEY,
    chain       text        NOT NULL,
    class       text        NOT NULL,
    through     bigint      NOT NULL,
    hash        text        NOT NULL,
    count       bigint      NOT NULL,
    kept        bigint      NOT NULL,
    kept_digest text        NOT NULL,
    at          timestamptz NOT NULL,
    -- Until then nobody else is asked to write it down.
    offered     timestamptz NOT NULL DEFAULT '-infinity',
    entry       uuid,
    key         text,
    signature   text
);
CREATE INDEX ON audit_drops (chain, class, through);
CREATE INDEX ON audit_drops (id) WHERE entry IS NULL;
