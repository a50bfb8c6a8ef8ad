-- In which pieces a response was told, so that its stream can be told again with the same events: for each item of its output a list
-- of [bytes of text, log-probabilities]. Empty for those that were kept before.
ALTER TABLE responses ADD COLUMN pieces TEXT NOT NULL DEFAULT '[]';
