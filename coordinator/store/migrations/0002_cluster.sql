CREATE TABLE nodes (
  name TEXT PRIMARY KEY,
  address TEXT NOT NULL UNIQUE,
  joined INTEGER NOT NULL,
  body BLOB NOT NULL
);
CREATE TABLE join_tokens (
  hash BLOB PRIMARY KEY,
  node TEXT NOT NULL,
  created INTEGER NOT NULL,
  expires INTEGER NOT NULL,
  created_by TEXT NOT NULL
);
CREATE TABLE sessions (
  id TEXT PRIMARY KEY,
  beat INTEGER NOT NULL,
  opened INTEGER NOT NULL
);
CREATE TABLE duties (
  name TEXT PRIMARY KEY,
  owner TEXT NOT NULL,
  epoch INTEGER NOT NULL
);
ALTER TABLE jobs DROP COLUMN lease_expires;
