CREATE TABLE images (
  name TEXT PRIMARY KEY,
  manifest_sha256 TEXT NOT NULL,
  origin TEXT NOT NULL,
  added INTEGER NOT NULL,
  removed INTEGER NOT NULL,
  body BLOB NOT NULL
);
CREATE TABLE image_copies (
  name TEXT NOT NULL,
  manifest_sha256 TEXT NOT NULL,
  node TEXT NOT NULL,
  verified INTEGER NOT NULL,
  PRIMARY KEY (name, node)
);
