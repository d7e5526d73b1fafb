-- The newest signed HEAD of each proxy's chains, as it came with what the proxy ships: outside its directory, so that a directory that is
-- put back to an earlier state is told by it. A chain has one row; it gets another when a HEAD comes that is not ahead of the one before.
CREATE TABLE audit_anchors (
    chain   text        NOT NULL,
    number  bigint      NOT NULL,
    machine text        NOT NULL,
    -- Exactly as it was signed.
    line    text        NOT NULL,
    at      timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (chain, number)
);
