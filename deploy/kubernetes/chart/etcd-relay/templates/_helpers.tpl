{{- /* The name of all objects. It leaves room for a zone, and fits a Service, which needs a letter first and no dots. A long name keeps its
beginning and gets a hash of all of it, so that two releases never share one. */ -}}
{{- define "etcd-relay.fullname" -}}
{{- $name := default .Release.Name .Values.fullnameOverride | replace "." "-" -}}
{{- if not (regexMatch "^[a-z]" $name) -}}{{- $name = printf "relay-%s" $name -}}{{- end -}}
{{- if gt (len $name) 40 -}}{{- $name = printf "%s-%s" (trunc 31 $name | trimSuffix "-") (sha256sum $name | trunc 8) -}}{{- end -}}
{{- $name -}}
{{- end -}}

{{- define "etcd-relay.selector" -}}
app.kubernetes.io/name: etcd-relay
app.kubernetes.io/instance: {{ .Release.Name | quote }}
{{- end -}}

{{- define "etcd-relay.labels" -}}
{{ include "etcd-relay.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service | quote }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | quote }}
{{- end -}}

{{- define "etcd-relay.serviceAccount" -}}
{{- default (include "etcd-relay.fullname" .) .Values.serviceAccount.name -}}
{{- end -}}

{{- /* The longest time that a stop takes, from the deletion of the pod on. */ -}}
{{- define "etcd-relay.stopSeconds" -}}
{{- add .Values.preStopSeconds .Values.drainSeconds -}}
{{- end -}}

{{- /* A size such as 64MiB or 1Gi, in whole MiB. */ -}}
{{- define "etcd-relay.mib" -}}
{{- $factors := dict "" 0.00000095367 "k" 0.00095367 "ki" 0.0009765625 "m" 0.95367 "mi" 1.0 "g" 953.67 "gi" 1024.0 "t" 953674.0 "ti" 1048576.0 -}}
{{- $unit := regexFind "[A-Za-z]*$" . | lower | trimSuffix "b" -}}
{{- if not (hasKey $factors $unit) -}}{{- fail (printf "%s is not a size; write it like 64MiB or 1Gi" .) -}}{{- end -}}
{{- mulf (regexFind "^[0-9.]+" . | float64) (get $factors $unit) | int64 -}}
{{- end -}}

{{- /* The memory that the relay may need without any key of a prefix, in MiB: itself with encoded pages of lists, histories, feeds on demand. */ -}}
{{- define "etcd-relay.fixedMib" -}}
{{- $histories := mul (len .Values.prefixes) (include "etcd-relay.mib" .Values.history.bytes | int64) -}}
{{- $onDemand := ternary (include "etcd-relay.mib" .Values.onDemand.bytes | int64) 0 (eq .Values.onDemand.mode "allow") -}}
{{- add 128 $histories $onDemand -}}
{{- end -}}

{{- /* Checks of values that must fit each other, which a schema cannot express. */ -}}
{{- define "etcd-relay.check" -}}
{{- if not .Values.etcd.endpoints -}}
{{- fail "etcd.endpoints is empty: name the client URLs of etcd's members, such as --set 'etcd.endpoints={http://etcd:2379}'" -}}
{{- end -}}
{{- if and (eq .Values.onDemand.mode "deny") (not .Values.prefixes) -}}
{{- fail "onDemand.mode is deny and prefixes is empty, so every watch would be refused: name a prefix" -}}
{{- end -}}
{{- if and .Values.tls.clientCertAuth (not .Values.tls.secretName) -}}
{{- fail "tls.clientCertAuth needs tls.secretName, the Secret with tls.crt, tls.key and ca.crt" -}}
{{- end -}}
{{- if and .Values.etcd.user.name (not .Values.etcd.user.secretName) -}}
{{- fail "etcd.user.name needs etcd.user.secretName, the Secret with the user's password" -}}
{{- end -}}
{{- $seen := dict -}}
{{- range .Values.zones -}}
{{- if hasKey $seen .name -}}{{- fail (printf "zones names %s twice" .name) -}}{{- end -}}
{{- $_ := set $seen .name true -}}
{{- end -}}
{{- with (.Values.resources.limits).memory -}}
{{- $limit := include "etcd-relay.mib" (toString .) | int64 -}}
{{- $needs := include "etcd-relay.fixedMib" $ | int64 -}}
{{- if lt $limit $needs -}}
{{- fail (printf "resources.limits.memory is %d MiB, but the relay may need %d MiB and the keys of its prefixes: 128 MiB for itself, %d histories of history.bytes, and onDemand.bytes. Raise the limit or lower these" $limit $needs (len $.Values.prefixes)) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "etcd-relay.trafficDistribution" -}}
{{- if .Values.service.trafficDistribution -}}
{{- .Values.service.trafficDistribution | replace "none" "" -}}
{{- else -}}
{{- ternary "PreferSameZone" "PreferClose" (semverCompare ">=1.34.0-0" .Capabilities.KubeVersion.Version) -}}
{{- end -}}
{{- end -}}

{{- /* The variables of `etcd-relay serve` of a zone's relays, as YAML. Takes the root and the zone. */ -}}
{{- define "etcd-relay.settings" -}}
{{- $zone := index . 1 -}}
{{- with index . 0 -}}
{{- $scheme := ternary "https" "http" (not (empty .Values.tls.secretName)) -}}
{{- $settings := dict
  "ETCD_RELAY_ETCD" (include "etcd-relay.literal" (join "," .Values.etcd.endpoints))
  "ETCD_RELAY_ON_DEMAND" .Values.onDemand.mode
  "ETCD_RELAY_ON_DEMAND_BYTES" .Values.onDemand.bytes
  "ETCD_RELAY_HISTORY_BYTES" .Values.history.bytes
  "ETCD_RELAY_LISTEN_GRPC" (printf "%s://:23790" $scheme)
  "ETCD_RELAY_LISTEN_HTTP" (printf "%s://:9001" $scheme)
  "ETCD_RELAY_LISTEN_METRICS" "http://:9002"
  "ETCD_RELAY_METRICS_FROM" "nobody"
  "ETCD_RELAY_KEYS_FROM" .Values.keysFrom
  "ETCD_RELAY_DRAIN_TIME" (printf "%ds" (int64 .Values.drainSeconds))
  "ETCD_RELAY_MAX_CONNECTION_AGE" .Values.maxConnectionAge
  "ETCD_RELAY_LAINLET" .Values.lainlet
  "ETCD_RELAY_LOG_FORMAT" "json"
  "ETCD_RELAY_LOG_LEVEL" .Values.logLevel -}}
{{- with .Values.prefixes -}}
{{- $escaped := list -}}
{{- range . -}}{{- $escaped = append $escaped (replace "," "\\," .) -}}{{- end -}}
{{- $_ := set $settings "ETCD_RELAY_PREFIX" (include "etcd-relay.literal" (join "," $escaped)) -}}
{{- end -}}
{{- with .Values.etcd.tls -}}
{{- if .secretName -}}
{{- if .ca -}}{{- $_ := set $settings "ETCD_RELAY_CACERT" (printf "/etc/etcd-relay/etcd/%s" .ca) -}}{{- end -}}
{{- if .cert -}}
{{- $_ := set $settings "ETCD_RELAY_CERT" (printf "/etc/etcd-relay/etcd/%s" .cert) -}}
{{- $_ := set $settings "ETCD_RELAY_KEY" (printf "/etc/etcd-relay/etcd/%s" .key) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- with .Values.etcd.user -}}
{{- if .name -}}
{{- $_ := set $settings "ETCD_RELAY_UPSTREAM_USER" (include "etcd-relay.literal" .name) -}}
{{- $_ := set $settings "ETCD_RELAY_UPSTREAM_PASSWORD_FILE" (printf "/etc/etcd-relay/user/%s" .key) -}}
{{- end -}}
{{- end -}}
{{- if .Values.tls.secretName -}}
{{- $_ := set $settings "ETCD_RELAY_CERT_FILE" "/etc/etcd-relay/server/tls.crt" -}}
{{- $_ := set $settings "ETCD_RELAY_KEY_FILE" "/etc/etcd-relay/server/tls.key" -}}
{{- if .Values.tls.clientCertAuth -}}
{{- $_ := set $settings "ETCD_RELAY_TRUSTED_CA_FILE" "/etc/etcd-relay/server/ca.crt" -}}
{{- end -}}
{{- end -}}
{{- if .Values.fleet.enabled -}}
{{- /* Relays balance among those that serve the same clients, which are those of a zone. */ -}}
{{- $_ := set $settings "ETCD_RELAY_ADVERTISE_CLIENT_URL" (printf "%s://%s:23790" $scheme .Values.fleet.advertiseHost) -}}
{{- $_ := set $settings "ETCD_RELAY_RESOLVER_PREFIX" (trimSuffix "/" (printf "%s/%s" (trimSuffix "/" .Values.fleet.resolverPrefix) ($zone.name | default ""))) -}}
{{- end -}}
{{- /* Helm reads a number as a float, whose text would be 1e+06 for a million. */ -}}
{{- range $variable, $value := .Values.settings -}}
{{- $is_whole := and (kindIs "float64" $value) (eq (toString $value) (toString (floor $value))) -}}
{{- $_ := set $settings $variable (ternary (printf "%.0f" (float64 $value)) (toString $value) $is_whole) -}}
{{- end -}}
{{- toYaml $settings -}}
{{- end -}}
{{- end -}}

{{- /* Kubernetes replaces $(NAME) in the value of a variable, except in $$(NAME). */ -}}
{{- define "etcd-relay.literal" -}}
{{- replace "$(" "$$(" . -}}
{{- end -}}

{{- /* The ports of etcd's members, as a sorted list. */ -}}
{{- define "etcd-relay.etcdPorts" -}}
{{- $ports := list -}}
{{- range .Values.etcd.endpoints -}}{{- $ports = append $ports (regexFind ":[0-9]+$" (trimSuffix "/" .) | trimPrefix ":" | default "2379" | int64) -}}{{- end -}}
{{- $ports | uniq | toJson -}}
{{- end -}}
