-- The index of an archive, version 2: requests for storage commitment (PS3.4 Annex J) that are still to be reported on.

CREATE TABLE commitments (
    id INTEGER PRIMARY KEY,
    transaction_uid TEXT NOT NULL,
    calling_ae_title TEXT NOT NULL,
    -- What was asked about: a JSON array of pairs, SOP class UID and SOP instance UID.
    instances TEXT NOT NULL,
    requested_at REAL NOT NULL,
    attempts INTEGER NOT NULL DEFAULT 0,
    -- When the report is tried next; NULL once it is over.
    due_at REAL,
    -- "reported", or why nobody tries any more.
    ending TEXT
);
CREATE UNIQUE INDEX commitments_open ON commitments (calling_ae_title, transaction_uid) WHERE due_at IS NOT NULL;
CREATE INDEX commitments_due ON commitments (due_at) WHERE due_at IS NOT NULL;
CREATE INDEX commitments_over ON commitments (requested_at) WHERE due_at IS NULL;
