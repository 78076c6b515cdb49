-- The index of an archive, version 1. Times are seconds since the epoch (UTC); sizes are bytes of datasets.

CREATE TABLE instances (
    id INTEGER PRIMARY KEY,
    sop_instance_uid TEXT NOT NULL,
    -- Empty for the one instance that usually exists; the SHA-256 for others that "keep-all" added.
    variant TEXT NOT NULL DEFAULT '',
    sop_class_uid TEXT NOT NULL,
    transfer_syntax_uid TEXT NOT NULL,
    study_instance_uid TEXT NOT NULL,
    series_instance_uid TEXT NOT NULL,
    patient_id TEXT NOT NULL,
    accession_number TEXT NOT NULL,
    study_date TEXT NOT NULL,
    modality TEXT NOT NULL,
    path TEXT NOT NULL,
    size INTEGER NOT NULL,
    sha256 TEXT NOT NULL,
    calling_ae_title TEXT NOT NULL,
    peer_address TEXT NOT NULL,
    received_at REAL NOT NULL,
    UNIQUE (sop_instance_uid, variant)
);
CREATE INDEX instances_by_series ON instances (study_instance_uid, series_instance_uid);

-- The sums below are kept with every change, so that asking for them costs nothing however much is there.
CREATE TABLE studies (
    study_instance_uid TEXT PRIMARY KEY,
    patient_id TEXT NOT NULL,
    accession_number TEXT NOT NULL,
    study_date TEXT NOT NULL,
    instances INTEGER NOT NULL,
    size INTEGER NOT NULL,
    first_received REAL NOT NULL,
    last_received REAL NOT NULL,
    -- When study.complete was last told; NULL while it is still to be told.
    completed_at REAL
) WITHOUT ROWID;
CREATE INDEX studies_by_last_received ON studies (last_received);
CREATE INDEX studies_incomplete ON studies (last_received) WHERE completed_at IS NULL;

CREATE TABLE series (
    study_instance_uid TEXT NOT NULL,
    series_instance_uid TEXT NOT NULL,
    modality TEXT NOT NULL,
    instances INTEGER NOT NULL,
    size INTEGER NOT NULL,
    PRIMARY KEY (study_instance_uid, series_instance_uid)
) WITHOUT ROWID;

CREATE TABLE senders (
    calling_ae_title TEXT PRIMARY KEY,
    last_received REAL NOT NULL
) WITHOUT ROWID;

-- Events wait here until somebody took them. AUTOINCREMENT: an id is never given twice.
CREATE TABLE outbox (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    kind TEXT NOT NULL,
    payload TEXT NOT NULL,
    created_at REAL NOT NULL,
    delivered_at REAL
);
CREATE INDEX outbox_pending ON outbox (id) WHERE delivered_at IS NULL;
CREATE INDEX outbox_delivered ON outbox (delivered_at) WHERE delivered_at IS NOT NULL;
