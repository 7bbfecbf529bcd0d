# frozen_string_literal: true

# A Rack application: /redis/KEY/VALUE stores a value, reads it back, and returns the process id and the value.

require_relative "prefork_cache"

CACHES = {
  "redis" => PreforkCache::Cache.new("redis", ENV.fetch("REDIS_URL")),
  "memcached" => PreforkCache::Cache.new("memcached", ENV.fetch("MEMCACHED_URL"))
}.freeze

# Runs in the master, before it forks: the master makes its own connections.
CACHES.each_value { |cache| cache.set("motd", "hello", 60) }

App = lambda do |env|
  _, store, key, value = env["PATH_INFO"].split("/")
  cache = CACHES.fetch(store)
  cache.set(key, value, 60)
  body = "#{Process.pid} #{cache.get(key)}"
  [200, { "Content-Type" => "text/plain", "Content-Length" => body.bytesize.to_s }, [body]]
end
