// The cloud-aggregator as a Container App: identity instead of keys, secrets by reference to a vault, as many instances as the backlog
// asks for. It keeps nothing between two starts: offsets, windows and alerts owed stand in the lake.

targetScope = 'resourceGroup'

@description('Where it runs.')
param location string

@description('First part of the names.')
param namePrefix string

@description('Host of the registry. The identity may pull from it.')
param registryServer string

@description('Version of the image.')
param version string

@description('Resource id of the identity that the program has.')
param identityId string

@description('Its client id.')
param identityClientId string

@description('Workspace for the logs.')
param workspaceId string

@description('Host of Event Hubs.')
param eventHubsHost string

@description('Container of the lake: abfss://CONTAINER@ACCOUNT.dfs.core.windows.net/')
param lakeLocation string

@description('Address of the secrets in the vault; a name follows.')
param secretsUri string

@description('Name of the secret with the connection string of Event Hubs.')
param eventHubsSecret string = 'event-hubs-connection'

@description('Name of the secret with the URL of the Logic App. Empty: nobody is told by HTTP.')
param maintenanceUrlSecret string = ''

@description('Name of the secret with the tokens of those who report outcomes. Empty: no port is open.')
param outcomeTokensSecret string = ''

@description('Subnet of the environment. Empty: the platform has one.')
param subnetId string = ''

@description('Where a Container App asks for tokens: the platform tells it in IDENTITY_ENDPOINT, which the storage library does not read.')
param identityEndpoint string = 'http://localhost:42356/msi/token'

@description('Fewest instances. One may be lost.')
param instancesMin int = 2

@description('Most instances: one for each four partitions of a topic.')
param instancesMax int = 3

// `{…}` in the files are filled in here; what does not differ from plant to plant stands in them.
var filled = replace(
  replace(
    replace(loadTextContent('cloud-aggregator.toml'), '{event-hubs-host}', eventHubsHost),
    '{lake-location}',
    lakeLocation
  ),
  '{client-id}',
  identityClientId
)
var settings = empty(maintenanceUrlSecret) ? filled : '${filled}${loadTextContent('maintenance-target.toml')}'

var vaultSecrets = concat(
  [
    { name: 'kafka-password', of: eventHubsSecret }
  ],
  empty(maintenanceUrlSecret) ? [] : [{ name: 'maintenance-url', of: maintenanceUrlSecret }],
  empty(outcomeTokensSecret) ? [] : [{ name: 'outcome-tokens', of: outcomeTokensSecret }]
)
var references = [
  for secret in vaultSecrets: {
    name: secret.name
    keyVaultUrl: '${secretsUri}${secret.of}'
    identity: identityId
  }
]
var secretFiles = [for secret in vaultSecrets: { secretRef: secret.name, path: secret.name }]

resource containers 'Microsoft.App/managedEnvironments@2024-03-01' = {
  name: '${namePrefix}-containers'
  location: location
  properties: {
    // By a diagnostic setting: the other way needs the workspace's key.
    appLogsConfiguration: {
      destination: 'azure-monitor'
    }
    vnetConfiguration: empty(subnetId)
      ? null
      : {
          infrastructureSubnetId: subnetId
          internal: false
        }
    workloadProfiles: [
      {
        name: 'Consumption'
        workloadProfileType: 'Consumption'
      }
    ]
  }
}

resource logs 'Microsoft.Insights/diagnosticSettings@2021-05-01-preview' = {
  name: 'logs'
  scope: containers
  properties: {
    workspaceId: workspaceId
    logs: [
      {
        categoryGroup: 'allLogs'
        enabled: true
      }
    ]
  }
}

resource app 'Microsoft.App/containerApps@2024-03-01' = {
  name: '${namePrefix}-cloud-aggregator'
  location: location
  identity: {
    type: 'UserAssigned'
    userAssignedIdentities: {
      '${identityId}': {}
    }
  }
  properties: {
    environmentId: containers.id
    workloadProfileName: 'Consumption'
    configuration: {
      activeRevisionsMode: 'Single'
      registries: [
        {
          server: registryServer
          identity: identityId
        }
      ]
      secrets: concat(references, [
        // Files come from secrets here; this one is none.
        {
          name: 'settings'
          value: settings
        }
        // The word that says that the password is a connection string. A scale rule takes it from a secret alone.
        {
          name: 'kafka-user'
          value: '$ConnectionString'
        }
      ])
      // TLS ends here. Only for outcomes.
      ingress: empty(outcomeTokensSecret)
        ? null
        : {
            external: true
            targetPort: 9466
            transport: 'http'
            allowInsecure: false
          }
    }
    template: {
      // `shutdown.drain-timeout` and a margin: the epoch is committed, then the group is left.
      terminationGracePeriodSeconds: 40
      containers: [
        {
          name: 'cloud-aggregator'
          image: '${registryServer}/cloud-aggregator:${version}'
          args: ['run', '--config', '/etc/cloud-aggregator/cloud-aggregator.toml']
          // BENCHMARKS.md, "How many instances": 320 MB an instance and 0.4 kB for each window held, up to 2.5 cores. The platform gives two
          // GiB with a core, which is what 500,000 readings/s cost with the raw table.
          resources: {
            cpu: json('1.0')
            memory: '2Gi'
          }
          env: concat(
            [
              { name: 'AGGREGATOR__ADMIN__LISTEN', value: '0.0.0.0:9465' }
              { name: 'AGGREGATOR__TELEMETRY__FORMAT', value: 'json' }
              { name: 'AGGREGATOR__SHUTDOWN__DRAIN_TIMEOUT', value: '30s' }
              // For the storage library.
              { name: 'AZURE_CLIENT_ID', value: identityClientId }
              { name: 'AZURE_MSI_ENDPOINT', value: identityEndpoint }
            ],
            empty(outcomeTokensSecret)
              ? []
              : [
                  { name: 'AGGREGATOR__API__LISTEN', value: '0.0.0.0:9466' }
                  { name: 'AGGREGATOR__API__TOKEN_FILE', value: '/run/secrets/cloud-aggregator/outcome-tokens' }
                ]
          )
          probes: [
            {
              type: 'Startup'
              httpGet: { path: '/healthz', port: 9465 }
              periodSeconds: 2
              failureThreshold: 10
            }
            {
              type: 'Liveness'
              httpGet: { path: '/healthz', port: 9465 }
              periodSeconds: 10
              timeoutSeconds: 5
              failureThreshold: 6
            }
            {
              type: 'Readiness'
              httpGet: { path: '/readyz', port: 9465 }
              periodSeconds: 5
              timeoutSeconds: 5
              failureThreshold: 3
            }
          ]
          volumeMounts: [
            { volumeName: 'settings', mountPath: '/etc/cloud-aggregator' }
            { volumeName: 'secrets', mountPath: '/run/secrets/cloud-aggregator' }
          ]
        }
      ]
      volumes: [
        {
          name: 'settings'
          storageType: 'Secret'
          secrets: [{ secretRef: 'settings', path: 'cloud-aggregator.toml' }]
        }
        {
          name: 'secrets'
          storageType: 'Secret'
          secrets: secretFiles
        }
      ]
      scale: {
        minReplicas: instancesMin
        maxReplicas: instancesMax
        rules: [
          {
            name: 'backlog'
            custom: {
              // The offsets that the program commits follow the lake epoch by epoch; no topic is named: all of the group count.
              type: 'kafka'
              metadata: {
                bootstrapServers: '${eventHubsHost}:9093'
                consumerGroup: 'cloud-aggregator'
                // What an instance of one core reads in half a minute.
                lagThreshold: '15000000'
                offsetResetPolicy: 'earliest'
                excludePersistentLag: 'true'
                version: '2.0.0'
                sasl: 'plaintext'
                tls: 'enable'
              }
              auth: [
                { secretRef: 'kafka-user', triggerParameter: 'username' }
                { secretRef: 'kafka-password', triggerParameter: 'password' }
              ]
            }
          }
        ]
      }
    }
  }
}

@description('Host at which outcomes are taken; empty without them.')
output outcomesHost string = empty(outcomeTokensSecret) ? '' : app.properties.configuration.ingress.fqdn
