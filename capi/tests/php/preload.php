<?php

require_once getenv('PREFORK_CACHE_PHP');
PreforkCache::load();
