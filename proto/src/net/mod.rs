//! TLS, identity, connections and the typed client.
