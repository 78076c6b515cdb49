-- The index of an archive, version 4: what is known of each modality, so that a restart forgets nothing. Rings: a slot is written
-- again after as many outcomes as are kept, and nothing has to be deleted.

CREATE TABLE outcomes (
    modality TEXT NOT NULL,
    -- What its AE title, host and port were: another device under the same name begins anew.
    address TEXT NOT NULL,
    slot INTEGER NOT NULL,
    at REAL NOT NULL,
    operation TEXT NOT NULL,
    reason TEXT NOT NULL,
    duration REAL NOT NULL,
    PRIMARY KEY (modality, slot)
) WITHOUT ROWID;

CREATE TABLE failures (
    modality TEXT NOT NULL,
    address TEXT NOT NULL,
    slot INTEGER NOT NULL,
    at REAL NOT NULL,
    operation TEXT NOT NULL,
    reason TEXT NOT NULL,
    status INTEGER,
    detail TEXT NOT NULL,
    PRIMARY KEY (modality, slot)
) WITHOUT ROWID;

CREATE TABLE conditions (
    modality TEXT NOT NULL,
    address TEXT NOT NULL,
    slot INTEGER NOT NULL,
    at REAL NOT NULL,
    condition TEXT NOT NULL,
    PRIMARY KEY (modality, slot)
) WITHOUT ROWID;
