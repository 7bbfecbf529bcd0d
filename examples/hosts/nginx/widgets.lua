-- /redis/KEY/VALUE stores a value, reads it back, and returns the process id and the value.
local store, key, value = ngx.var.uri:match("^/(%w+)/([^/]+)/(.+)$")
local cache = caches[store]
cache:set(key, value, 60)
local body = ngx.worker.pid() .. " " .. cache:get(key)
ngx.header.content_type = "text/plain"
ngx.header.content_length = #body
ngx.print(body)
