CREATE TABLE authorities (
  fingerprint TEXT PRIMARY KEY,
  state INTEGER NOT NULL,
  created INTEGER NOT NULL,
  body BLOB NOT NULL
);
CREATE TABLE node_certificates (
  node TEXT PRIMARY KEY,
  authority TEXT NOT NULL,
  not_after INTEGER NOT NULL
);
CREATE TABLE operators (
  name TEXT PRIMARY KEY,
  role INTEGER NOT NULL,
  revoked INTEGER NOT NULL,
  body BLOB NOT NULL
);
CREATE TABLE operator_certificates (
  fingerprint BLOB PRIMARY KEY,
  operator TEXT NOT NULL,
  authority TEXT NOT NULL,
  created INTEGER NOT NULL,
  not_after INTEGER NOT NULL
);
CREATE INDEX operator_certificates_operator ON operator_certificates (operator);
CREATE TABLE tokens (
  name TEXT PRIMARY KEY,
  hash BLOB NOT NULL UNIQUE,
  role INTEGER NOT NULL,
  expires INTEGER NOT NULL,
  revoked INTEGER NOT NULL,
  used INTEGER NOT NULL,
  body BLOB NOT NULL
);
ALTER TABLE events ADD COLUMN actor TEXT NOT NULL DEFAULT '';
ALTER TABLE events ADD COLUMN source TEXT NOT NULL DEFAULT '';
ALTER TABLE boots ADD COLUMN authority TEXT NOT NULL DEFAULT '';
