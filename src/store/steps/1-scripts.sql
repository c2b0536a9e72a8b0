-- Scripts: what was asked for and how it ended.
CREATE TABLE scripts (
    id           TEXT PRIMARY KEY,
    seq          INTEGER NOT NULL UNIQUE,   -- order of arrival
    request      BLOB NOT NULL,             -- baton.v1.ScriptSpec
    phase        TEXT NOT NULL,             -- JSON, with the outcome
    done         INTEGER NOT NULL,          -- 1 when the phase is done
    labels       TEXT NOT NULL,             -- JSON
    mutex        TEXT NOT NULL,
    queued_at    INTEGER NOT NULL,          -- all times: nanoseconds since 1970
    started_at   INTEGER,
    ended_at     INTEGER,
    stop_reason  TEXT,
    output_bytes INTEGER NOT NULL
) STRICT;
CREATE INDEX scripts_by_arrival ON scripts (done, seq);
