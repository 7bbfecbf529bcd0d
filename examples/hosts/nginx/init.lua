-- In the master, before it forks: here it makes its own connections. nginx does this again at each reload.
local prefork_cache = require "prefork_cache"

caches = {
  redis = prefork_cache.open(os.getenv("REDIS_URL"), { name = "redis" }),
  memcached = prefork_cache.open(os.getenv("MEMCACHED_URL"), { name = "memcached" }),
}

for _, cache in pairs(caches) do cache:set("motd", "hello", 60) end
