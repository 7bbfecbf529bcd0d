<?php

// Runs in the master, before it forks: the master makes its own connections.
require __DIR__ . '/../../../bindings/php/prefork_cache.php';
PreforkCache::load();

foreach (['redis', 'memcached'] as $store) {
    (new PreforkCache(getenv(strtoupper($store) . '_URL'), $store))->set('motd', 'hello', 60);
}
