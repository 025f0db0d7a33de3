"""The ledger: every general sentence of the book, quoted, looked up on its page, and tried."""
