-- What history is asked by, and what its limits count. No request is read to answer: they are large.
-- A row that is damaged holds up no step: its outcome counts as lost.
ALTER TABLE scripts ADD COLUMN outcome TEXT;        -- the outcome's kind, when it is done
ALTER TABLE scripts ADD COLUMN exit_code INTEGER;   -- of the kind 'exited'
ALTER TABLE scripts ADD COLUMN disk_bytes INTEGER;  -- of all that is kept of it; NULL: not known
UPDATE scripts SET
    ended_at = coalesce(ended_at, started_at, queued_at),
    outcome = CASE
        WHEN NOT json_valid(phase) THEN 'lost'
        WHEN json_type(phase, '$.outcome.kind.kind') = 'text'
            THEN json_extract(phase, '$.outcome.kind.kind')
        ELSE 'lost' END,
    exit_code = CASE
        WHEN NOT json_valid(phase) THEN NULL
        WHEN json_type(phase, '$.outcome.kind.code') = 'integer'
            THEN json_extract(phase, '$.outcome.kind.code') END
    WHERE done = 1;
CREATE TABLE script_labels (
    key   TEXT NOT NULL,
    value TEXT NOT NULL,
    seq   INTEGER NOT NULL,                         -- the script's
    PRIMARY KEY (key, value, seq)
) STRICT, WITHOUT ROWID;
CREATE INDEX script_labels_by_script ON script_labels (seq);
INSERT OR IGNORE INTO script_labels SELECT label.key, label.value, scripts.seq
    FROM scripts, json_each(CASE WHEN json_valid(labels) THEN labels ELSE '{}' END) AS label
    WHERE label.type = 'text';
CREATE TRIGGER scripts_inserted AFTER INSERT ON scripts BEGIN
    INSERT INTO script_labels SELECT key, value, NEW.seq FROM json_each(NEW.labels);
END;
CREATE TRIGGER scripts_deleted AFTER DELETE ON scripts BEGIN
    DELETE FROM script_labels WHERE seq = OLD.seq;
END;
DROP INDEX scripts_by_arrival;
CREATE INDEX scripts_by_arrival
    ON scripts (done, seq, queued_at, ended_at, outcome, exit_code);
CREATE INDEX scripts_by_end ON scripts (ended_at, seq, disk_bytes) WHERE done = 1;
CREATE INDEX scripts_unmeasured ON scripts (seq) WHERE done = 1 AND disk_bytes IS NULL;
