//! The same for what PostgreSQL keeps.
