-- Runs in the master, before it forks: the master makes its own connections. nginx runs this again at each reload.
local prefork_cache = require "prefork_cache"

caches = {
  redis = prefork_cache.open(os.getenv("REDIS_URL"), { name = "redis" }),
  memcached = prefork_cache.open(os.getenv("MEMCACHED_URL"), { name = "memcached" }),
}

for _, cache in pairs(caches) do cache:set("motd", "hello", 60) end
