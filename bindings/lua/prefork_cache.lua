--- A cache that is safe to use across fork(), for LuaJIT: Redis, Memcached and in-memory stores.
--
--     local prefork_cache = require "prefork_cache"
--     local cache = prefork_cache.open("redis://127.0.0.1:6379")   -- in the master or in a worker; no hook is needed
--     cache:set("motd", "hello", 60)
--     local page = cache:fetch("page", 60, function() return render() end)
--
-- Keys and values are strings. Times are in seconds and may be fractions; `nil` means that an entry never expires.
-- Failures are errors: tables with `status` ("PFC_TIMEOUT"), `message` and `is_transient`, which `tostring` converts. A
-- loader may raise errors: no frame of the library is on the stack while it runs.
--
-- Calls block the process, like all I/O of plain LuaJIT; in nginx keep the timeouts in the URL short.

local ffi = require "ffi"

local API = 1
local NEVER = -1
local OK, MISS, CLAIM = 0, 1, 3

local directory = debug.getinfo(1, "S").source:match("^@(.*/)") or "./"

--- Reads the declarations from the path in PREFORK_CACHE_FFI_H, or from where they are installed.
local function declarations()
  local tried = {}
  local installed = { directory .. "../../include/", "/usr/local/include/", "/usr/include/" }
  for index, path in ipairs(installed) do installed[index] = path .. "prefork_cache.ffi.h" end
  for _, path in ipairs({ os.getenv("PREFORK_CACHE_FFI_H"), unpack(installed) }) do
    local file = io.open(path)
    if file then
      local text = file:read("*a")
      file:close()
      -- Without the lines for PHP.
      return (text:gsub("#[^\n]*\n", ""))
    end
    tried[#tried + 1] = path
  end
  error("prefork_cache.ffi.h is not in " .. table.concat(tried, ", ") .. ": set PREFORK_CACHE_FFI_H", 0)
end

ffi.cdef(declarations())
local C = ffi.load(os.getenv("PREFORK_CACHE_LIB") or "libprefork_cache.so.0")
assert(C.pfc_abi_version() >= API, "libprefork_cache is older than prefork_cache.lua")

local Value = ffi.typeof("pfc_value")
local Values = ffi.typeof("pfc_value[?]")
local Keys = ffi.typeof("pfc_key[?]")
local Statuses = ffi.typeof("pfc_status[?]")
local Expiry = ffi.typeof("pfc_expiry")
local Integer = ffi.typeof("int64_t[1]")
local Size = ffi.typeof("size_t[1]")
local Claim = ffi.typeof("pfc_claim *[1]")
local Handle = ffi.typeof("pfc_cache *[1]")

local Error = {}
Error.__index = Error
Error.__tostring = function(self) return "prefork_cache: " .. self.status .. ": " .. self.message end

local function failure(status)
  return setmetatable({
    status = ffi.string(C.pfc_status_name(status)),
    message = ffi.string(C.pfc_error_message()),
    is_transient = C.pfc_error_is_transient() == 1,
  }, Error)
end

--- Returns the status; raises it if it is an error.
local function checked(status)
  if status < 0 then error(failure(status), 3) end
  return status
end

local function milliseconds(seconds)
  if seconds == nil then return NEVER end
  if type(seconds) ~= "number" or seconds ~= seconds or seconds <= 0 then
    error("prefork_cache: a time of " .. tostring(seconds) .. " seconds", 3)
  end
  return math.ceil(seconds * 1000)
end

--- Returns the string of a value, or nil, and frees the value.
local function take(value)
  if value.data == nil then return nil end
  local text = ffi.string(value.data, value.length)
  C.pfc_value_free(value)
  return text
end

local capacity = 4096
local buffer = ffi.new("char[?]", capacity)
local length = Size()

local Cache = {}
Cache.__index = Cache

--- Returns the string under a key, or nil.
function Cache:get(key)
  local status = checked(C.pfc_get_into(self.handle, key, #key, buffer, capacity, length, nil))
  if status == OK then return ffi.string(buffer, length[0]) end
  if status == MISS then return nil end
  local value = Value()
  checked(C.pfc_get(self.handle, key, #key, value, nil))
  return take(value)
end

--- Returns a table of the existing entries, by key.
function Cache:get_many(keys)
  local count = #keys
  local array, values = Keys(count), Values(count)
  for index, key in ipairs(keys) do
    array[index - 1].data, array[index - 1].length = key, #key
  end
  local status = C.pfc_get_many(self.handle, array, count, values, nil, nil)
  local failed = status < 0 and failure(status)
  local found = {}
  for index, key in ipairs(keys) do found[key] = take(values[index - 1]) end
  if failed then error(failed, 2) end
  return found
end

--- Stores a string, whether or not there is an entry.
function Cache:set(key, value, seconds)
  checked(C.pfc_set(self.handle, key, #key, value, #value, milliseconds(seconds), nil))
end

--- Stores a string if there is no entry. Returns whether it was stored.
function Cache:add(key, value, seconds)
  return checked(C.pfc_add(self.handle, key, #key, value, #value, milliseconds(seconds), nil)) == OK
end

--- Stores a string if there is an entry. Returns whether it was stored.
function Cache:replace(key, value, seconds)
  return checked(C.pfc_replace(self.handle, key, #key, value, #value, milliseconds(seconds), nil)) == OK
end

--- Removes an entry. Returns whether there was one.
function Cache:delete(key)
  return checked(C.pfc_delete(self.handle, key, #key, nil)) == OK
end

--- Removes many entries. Returns how many there were.
function Cache:delete_many(keys)
  local count = #keys
  local array, statuses = Keys(count), Statuses(count)
  for index, key in ipairs(keys) do
    array[index - 1].data, array[index - 1].length = key, #key
  end
  checked(C.pfc_delete_many(self.handle, array, count, statuses, nil))
  local removed = 0
  for index = 0, count - 1 do
    if statuses[index] == OK then removed = removed + 1 end
  end
  return removed
end

--- Returns whether there is an entry.
function Cache:exists(key)
  return checked(C.pfc_exists(self.handle, key, #key, nil)) == OK
end

--- Sets the time to live of an entry. Returns whether there is one.
function Cache:touch(key, seconds)
  return checked(C.pfc_touch(self.handle, key, #key, milliseconds(seconds), nil)) == OK
end

--- Returns the seconds until an entry expires: math.huge if it never does, nil if there is no entry.
function Cache:expires_in(key)
  local left = Integer()
  if checked(C.pfc_expires_in(self.handle, key, #key, left, nil)) == MISS then return nil end
  return left[0] == NEVER and math.huge or tonumber(left[0]) / 1000
end

--- Adds to a counter and returns the sum. A new counter expires after `seconds`.
function Cache:increment(key, by, seconds)
  local count = Integer()
  checked(C.pfc_increment(self.handle, key, #key, by or 1, milliseconds(seconds), count, nil))
  return tonumber(count[0])
end

--- Returns the number in a counter, or nil.
function Cache:counter(key)
  local count = Integer()
  if checked(C.pfc_counter(self.handle, key, #key, count, nil)) == MISS then return nil end
  return tonumber(count[0])
end

--- Removes all entries of the namespace; for a cache without a namespace, all entries of the store.
function Cache:clear()
  checked(C.pfc_clear(self.handle, nil))
end

--- Returns the string under a key, or calls `load`, stores its string and returns that. One caller among all processes
-- on the server loads, and the others wait for it. An error of `load` is raised, unless there is a stale string.
--
-- `options`: `stale`, for how many seconds after that a stale string is returned while it is reloaded; `refresh_ahead`,
-- how many seconds before its end one caller reloads a string; `jitter`, the fraction by which its time is shortened at
-- random, at most; `load_timeout`, how many seconds a load may take before others stop waiting for it (60).
function Cache:fetch(key, seconds, load, options)
  options = options or {}
  local expiry = Expiry {
    ttl_ms = milliseconds(seconds),
    stale_ms = options.stale and milliseconds(options.stale) or 0,
    refresh_ahead_ms = options.refresh_ahead and milliseconds(options.refresh_ahead) or 0,
    jitter = options.jitter or 0,
  }
  local load_timeout = options.load_timeout and milliseconds(options.load_timeout) or 0
  local value, claim = Value(), Claim()
  local status = checked(C.pfc_fetch_begin(self.handle, key, #key, load_timeout, value, claim, nil))
  local found = take(value)
  if status ~= CLAIM then return found end

  local is_loaded, loaded = pcall(load, key)
  if is_loaded and type(loaded) ~= "string" then
    is_loaded, loaded = false, "prefork_cache: a loader returned a " .. type(loaded) .. ", not a string"
  end
  if not is_loaded then
    C.pfc_fetch_fail(claim[0], nil, nil)
    if found then return found end
    error(loaded, 0)
  end
  status = C.pfc_fetch_complete(claim[0], loaded, #loaded, expiry, nil)
  if status < 0 then
    local failed = failure(status)
    C.pfc_fetch_fail(claim[0], nil, nil)
    error(failed, 2)
  end
  return loaded
end

--- Returns the statistics of the cache in this process, as JSON.
function Cache:stats()
  local value = Value()
  checked(C.pfc_stats(self.handle, value))
  return take(value)
end

local prefork_cache = { Error = Error }

--- Opens a cache, or uses the one that is open under this name. `options`: `name` ("default"), `namespace`.
function prefork_cache.open(url, options)
  options = options or {}
  local name, namespace = options.name or "default", options.namespace
  local handle = Handle()
  checked(C.pfc_open(name, #name, url, #url, namespace, namespace and #namespace or 0, handle))
  return setmetatable({ handle = handle[0] }, Cache)
end

--- Refreshes the stores after a fork, now instead of at their first use. Optional. Returns a line for a log.
function prefork_cache.after_fork()
  local report = Value()
  checked(C.pfc_after_fork(report))
  return take(report)
end

--- Returns the generation of this process: 1, and one more in each forked child.
function prefork_cache.generation()
  return tonumber(C.pfc_generation())
end

--- Returns the failures that no call has raised, as JSON, or nil, and clears the list.
function prefork_cache.take_errors()
  local value = Value()
  checked(C.pfc_take_errors(value))
  return take(value)
end

--- Returns the statistics of all caches of this process, in the text format of Prometheus.
function prefork_cache.prometheus()
  local value = Value()
  checked(C.pfc_prometheus(value))
  return take(value)
end

return prefork_cache
