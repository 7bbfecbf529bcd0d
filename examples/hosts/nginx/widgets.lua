-- /redis/KEY/VALUE stores a value, and answers with the process's number and what it reads back.
local store, key, value = ngx.var.uri:match("^/(%w+)/([^/]+)/(.+)$")
local cache = caches[store]
cache:set(key, value, 60)
local body = ngx.worker.pid() .. " " .. cache:get(key)
ngx.header.content_type = "text/plain"
ngx.header.content_length = #body
ngx.print(body)
